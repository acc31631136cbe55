"""Model, the Spec from which a network is built, and Interface, what the task asks of it."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Literal

from decoct.spec import Spec

if TYPE_CHECKING:
    from torch import nn


class Interface(Spec):
    """What a task puts in and expects out.

    `shape` of one sample without the batch axis: image (C, H, W), tabular (F,), text (L,) with L the longest.
    `outputs`: classes, or numbers predicted. `vocabulary` and `padding` (its id) for text.
    """

    kind: Literal["image", "text", "tabular"]
    shape: tuple[int, ...]
    outputs: int
    vocabulary: int | None = None
    padding: int | None = None


class Model(Spec):
    """Describes a network; `build` makes a fresh one."""

    @abstractmethod
    def build(self, interface: Interface, *, pretrained: bool = True) -> nn.Module:
        """A new module in train mode, parameters drawn from torch's current random state.

        `pretrained=False` asks for the structure alone: no download, no file but the config is read (used to rebuild
        an artifact, whose weights follow). Image nets take `[B, C, H, W]` and return logits `[B, outputs]` (or an
        object with `.logits`); text nets take `input_ids=` and `attention_mask=` `[B, L]`; tabular nets `[B, F]`.
        """


def shorthand(value: Any) -> Any:
    """Plain data for a model from a name: `"timm/resnet34"`, `"torchvision/resnet18"`, `"mlp"`."""
    if not isinstance(value, str):
        return value
    use, _, name = value.partition("/")
    return {"use": use, "name": name} if name else {"use": use}
