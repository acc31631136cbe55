"""How a network is called and what it returned, and the programs that are exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor, nn

from decoct.capture import capture
from decoct.errors import RecipeError
from decoct.models.interface import Interface
from decoct.outputs import Dense, Needs, Outputs

if TYPE_CHECKING:
    from decoct.models.interface import Port


@runtime_checkable
class HasLogits(Protocol):
    """What transformers' models and their like return."""

    logits: Tensor


def call(model: nn.Module, kind: str, inputs: Any) -> Any:
    """Runs a model: text by keywords (`input_ids`, `attention_mask`), all else by one positional tensor."""
    return model(**inputs) if kind == "text" and isinstance(inputs, Mapping) else model(inputs)


def run_plainly(module: nn.Module, inputs: Any, interface: Interface, needs: Needs) -> Outputs:
    """What a network says whose result is logits, one tensor for all outputs or one for each by name."""
    if not needs.features:
        return outputs_of(call(module, interface.kind, inputs), interface)
    with capture(module, sorted(needs.features)) as features:
        raw = call(module, interface.kind, inputs)
    found = outputs_of(raw, interface)
    return Outputs(found.distribution, heads=found.heads, features=dict(features))


def outputs_of(raw: Any, interface: Interface) -> Outputs:
    """The Outputs of what a model returned; of several outputs each is a head, by its name.

    A tensor for several outputs holds them side by side, in their order. RecipeError describes anything else.
    """
    ports = interface.outputs
    if len(ports) < 2:
        logits = logits_of(raw)
        return Outputs(Dense(logits.movedim(1, -1) if interface.per_pixel and logits.ndim == 4 else logits))
    if isinstance(raw, Mapping) and set(ports) <= set(raw):
        return Outputs(heads={name: Outputs(Dense(raw[name])) for name in ports})
    logits = logits_of(raw)
    widths = [port.width or 1 for port in ports.values()]
    if logits.shape[-1] != sum(widths):
        raise RecipeError(
            f"the model returned logits {list(logits.shape)} for the heads {_listed(ports)}; expected a mapping of "
            f"these names, or {sum(widths)} numbers for each sample"
        )
    return Outputs(heads=dict(zip(ports, (Outputs(Dense(each)) for each in logits.split(widths, dim=-1)))))


def _listed(ports: Mapping[str, Port]) -> str:
    return ", ".join(f"{name} ({port.width})" for name, port in ports.items())


def logits_of(raw: Any) -> Tensor:
    """The logits of what a model returned: a tensor, a mapping with "logits" (torchvision's networks for maps: "out"),
    an object with `.logits`.

    RecipeError describes anything else.
    """
    found = raw
    if isinstance(raw, Mapping):
        found = raw["logits"] if "logits" in raw else raw.get("out")
    elif not isinstance(raw, Tensor) and isinstance(raw, HasLogits):
        found = raw.logits
    if isinstance(found, Tensor):
        return found
    what = f"a mapping with {', '.join(map(str, raw))}" if isinstance(raw, Mapping) else f"a {type(raw).__name__}"
    what += f" of {len(raw)}" if isinstance(raw, tuple | list) else ""
    raise RecipeError(f"the model returned {what}; return a tensor, or an object or mapping with logits")


Postprocessing = Callable[[Any], Any]
"""What a model returned -> a tensor, or a tuple of tensors, one for each output of the program."""


class ImageProgram(nn.Module):
    """`image` `[B, C, H, W]` -> what `postprocessing` makes of the model's result (its logits by default)."""

    def __init__(
        self, preprocessing: nn.Module, model: nn.Module, postprocessing: Postprocessing | None = None
    ) -> None:
        super().__init__()
        self.preprocessing, self.model = preprocessing, model
        self.postprocessing = postprocessing

    def forward(self, image: Tensor) -> Any:
        raw = self.model(self.preprocessing(image))
        return logits_of(raw) if self.postprocessing is None else self.postprocessing(raw)


class TextProgram(nn.Module):
    """Ids `[B, L]` and whatever else the model was trained with, by name -> what `postprocessing` makes of its result.

    `positional`: the model takes its one input by position, as it was given in training.
    """

    def __init__(
        self, model: nn.Module, postprocessing: Postprocessing | None = None, *, positional: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.postprocessing = postprocessing
        self.positional = positional

    def forward(self, **inputs: Tensor) -> Any:
        raw = self.model(*inputs.values()) if self.positional else self.model(**inputs)
        return logits_of(raw) if self.postprocessing is None else self.postprocessing(raw)


class TabularProgram(nn.Module):
    """`features` float32 `[B, F]` -> what `postprocessing` makes of the model's result."""

    def __init__(
        self, preprocessing: nn.Module, model: nn.Module, postprocessing: Postprocessing | None = None
    ) -> None:
        super().__init__()
        self.preprocessing, self.model = preprocessing, model
        self.postprocessing = postprocessing

    def forward(self, features: Tensor) -> Any:
        raw = self.model(self.preprocessing(features))
        return logits_of(raw) if self.postprocessing is None else self.postprocessing(raw)
