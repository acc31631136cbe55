"""How a model is called and what it returned, and the programs that are exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from decoct.errors import RecipeError

Kind = Literal["image", "text", "tabular"]


@runtime_checkable
class HasLogits(Protocol):
    """What transformers' models and their like return."""

    logits: Tensor


def call(model: nn.Module, kind: Kind, inputs: Any) -> Any:
    """Runs a model: text by keywords (`input_ids`, `attention_mask`), all else by one positional tensor."""
    return model(**inputs) if kind == "text" and isinstance(inputs, Mapping) else model(inputs)


def logits_of(raw: Any) -> Tensor:
    """The logits of what a model returned: a tensor, a mapping with "logits", an object with `.logits`.

    RecipeError describes anything else.
    """
    found = raw
    if isinstance(raw, Mapping):
        found = raw.get("logits")
    elif not isinstance(raw, Tensor) and isinstance(raw, HasLogits):
        found = raw.logits
    if isinstance(found, Tensor):
        return found
    what = f"a mapping with {', '.join(map(str, raw))}" if isinstance(raw, Mapping) else f"a {type(raw).__name__}"
    raise RecipeError(f"the model returned {what}; return a tensor, or an object or mapping with logits")


class ImageProgram(nn.Module):
    """`image` `[B, C, H, W]` -> logits `[B, classes]`."""

    def __init__(self, preprocessing: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.preprocessing, self.model = preprocessing, model

    def forward(self, image: Tensor) -> Tensor:
        return logits_of(self.model(self.preprocessing(image)))


class TextProgram(nn.Module):
    """`input_ids`, `attention_mask` int64 `[B, L]` -> logits `[B, classes]`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return logits_of(self.model(input_ids=input_ids, attention_mask=attention_mask))


class TabularProgram(nn.Module):
    """`features` float32 `[B, F]` -> what `postprocessing` makes of the logits."""

    def __init__(
        self, preprocessing: nn.Module, model: nn.Module, postprocessing: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.preprocessing, self.model = preprocessing, model
        self.postprocessing = nn.Identity() if postprocessing is None else postprocessing

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.postprocessing(logits_of(self.model(self.preprocessing(features))))
        return result
