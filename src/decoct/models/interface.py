"""Interface, what a task puts into a network and expects out of it, as named ports; Program, what is exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from decoct.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor, nn

InputKind = Literal["image", "text", "tabular"]
PortKind = Literal["image", "ids", "features", "logits", "numbers", "boxes", "embedding", "state"]


class Port(Spec):
    """One named input or output.

    `shape` of one sample, without the batch axis; None where an axis is free. `axes`: the names of free axes, counted
    with the batch axis, which is 0. `feeds`: the input that this output becomes in the next call (a cache, a state).
    """

    kind: PortKind
    shape: tuple[int | None, ...] = ()
    axes: Mapping[int, str] = {}
    feeds: str | None = Field(default=None, exclude_if=lambda value: value is None)

    @property
    def width(self) -> int | None:
        """How many numbers there are at each place: the size of the last axis."""
        return self.shape[-1] if self.shape else None


class Interface(Spec):
    """What a task puts in and expects out.

    `kind` of the inputs as a whole; `inputs` and `outputs` by name; `vocabulary` and `padding` (its id) for text.
    The short form `Interface(kind="image", shape=(3, 32, 32), outputs=10)` has one input and logits of each sample.

    >>> Interface(kind="image", shape=(3, 32, 32), outputs=10).outputs["logits"].shape
    (10,)
    """

    kind: InputKind
    inputs: Mapping[str, Port] = {}
    outputs: Mapping[str, Port] = {}
    vocabulary: int | None = None
    padding: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_short_form(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "shape" not in data:
            return data
        rest = {name: value for name, value in data.items() if name != "shape"}
        rest["inputs"] = input_ports(data.get("kind", "image"), tuple(data["shape"]))
        if isinstance(data.get("outputs"), int):
            rest["outputs"] = {"logits": Port(kind="logits", shape=(data["outputs"],))}
        return rest

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample of the first input, without the batch axis."""
        found = next(iter(self.inputs.values())).shape
        return tuple(size or 1 for size in found)

    @property
    def width(self) -> int:
        """How many numbers a network gives at each place: classes, or numbers predicted; of several outputs the sum."""
        return sum(port.width or 1 for port in self.outputs.values())

    @property
    def positions(self) -> bool:
        """Whether there is an answer for each position of a sample rather than one for the whole."""
        return any(len(port.shape) > 1 for port in self.outputs.values())

    @property
    def boxes(self) -> bool:
        """Whether there are boxes."""
        return any(port.kind == "boxes" for port in self.outputs.values())

    @property
    def classes(self) -> int:
        """How many classes there are scores for, where there are boxes."""
        return self.outputs["scores"].width or 1

    @property
    def per_pixel(self) -> bool:
        """Whether there are class logits for each pixel of an image."""
        return any(port.kind == "logits" and len(port.shape) == 3 for port in self.outputs.values())


def input_ports(kind: str, shape: tuple[int | None, ...]) -> dict[str, Port]:
    """The inputs of a network of one kind: an image (C, H, W), a row (F,), or a text (L,), L the longest."""
    if kind == "text":
        axes = {0: "batch", 1: "length"}
        return {name: Port(kind="ids", shape=shape, axes=axes) for name in ("input_ids", "attention_mask")}
    if kind == "image":
        return {"image": Port(kind="image", shape=shape, axes={0: "batch"})}
    return {"features": Port(kind="features", shape=shape, axes={0: "batch"})}


@dataclass(frozen=True)
class Program:
    """One graph that is exported: `module` takes `example` by name and gives `outputs`, in their order.

    `axes`: dynamic axes of each input, by their place.
    """

    module: nn.Module
    example: Mapping[str, Tensor]
    axes: Mapping[str, Mapping[int, str]]
    outputs: Mapping[str, Port]


MAIN = "model"
"""The name of a model's main program; further ones (a decoder's step) have their own."""
