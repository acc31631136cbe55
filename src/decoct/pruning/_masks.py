"""What schemes that set weights to zero share: which weights, the pace, the callbacks."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.training.callback import Callback
from decoct.training.clock import Clock
from decoct.training.compression import Change, Compressed, Evidence, Scheme, protected
from decoct.training.projection import Projection

LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.RNNBase,
    nn.MultiheadAttention,
)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)

Tensors = dict[str, Tensor]
Rule = Callable[[Mapping[str, Tensor], float], Tensors]
"""Scores by name, and how far pruning has gone (0 to 1) -> masks; True is kept."""

SHAPES: dict[str, Callable[[float], float]] = {
    "one_shot": lambda time: 1.0,
    "linear": lambda time: time,
    "cubic": lambda time: 1 - (1 - time) ** 3,
}
"""Strength over time, both 0 to 1."""


def prunable(module: nn.Module, protect: Sequence[str] = (), *, embeddings: bool = False) -> dict[str, nn.Parameter]:
    """The weights of convolutions, linear and recurrent layers and attention projections, by name, each once.

    No biases and no norms. A weight that an embedding shares counts as the embedding's. RecipeError where there are
    none.

    >>> list(prunable(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))))
    ['0.weight']
    """
    kept = protected(module, protect)
    kinds = (*LAYERS, *EMBEDDINGS) if embeddings else LAYERS
    tables = () if embeddings else EMBEDDINGS
    out = {id(each) for path, m in module.named_modules() for each in m._parameters.values() if path in kept}
    out |= {id(m.weight) for m in module.modules() if isinstance(m, tables)}
    found: dict[str, nn.Parameter] = {}
    for path, each in module.named_modules():
        if not isinstance(each, kinds):
            continue
        for name, parameter in each._parameters.items():
            if parameter is not None and "weight" in name and parameter.ndim > 1 and id(parameter) not in out:
                out.add(id(parameter))
                found[f"{path}.{name}" if path else name] = parameter
    if not found:
        reason = f"all of it is protected by {', '.join(protect)}" if protect else "it has no such layers"
        raise RecipeError(
            f"{type(module).__name__}: no weights of convolutions or linear layers to set to zero; {reason}"
        )
    return found


def smallest_out(scores: Mapping[str, Tensor], ratio: float, scope: Literal["global", "layer"]) -> Tensors:
    """Masks that leave out the share `ratio` of lowest scores, of all weights together or of each layer.

    Exactly round(ratio · count) are left out; of equal scores the first.

    >>> smallest_out({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([1.0, 2.0])}, 0.25, "global")["a"]
    tensor([ True, False])
    """
    if scope == "layer":
        return {name: _without_lowest(each.flatten(), ratio).view_as(each) for name, each in scores.items()}
    whole = _without_lowest(torch.cat([each.flatten() for each in scores.values()]), ratio)
    parts = whole.split([each.numel() for each in scores.values()])
    return {name: part.view_as(each) for part, (name, each) in zip(parts, scores.items())}


def _without_lowest(scores: Tensor, ratio: float) -> Tensor:
    count = round(ratio * len(scores))
    if count == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    bound = scores.kthvalue(count).values
    below, ties = scores < bound, scores == bound
    left = count - below.sum()
    return ~(below | (ties & (ties.cumsum(0) <= left)))


@dataclass(frozen=True)
class Pace:
    """When masks change: from progress `begin` to `until`, every so many steps; `shape` maps time to strength, both
    0 to 1."""

    begin: float
    until: float
    every: int
    shape: Callable[[float], float]

    def __post_init__(self) -> None:
        if not self.begin < self.until:
            raise RecipeError(
                f"begin is {self.begin:g} and masks are to be complete at {self.until:g} of the budget; "
                f"give a begin below {self.until:g}"
            )

    def strength(self, clock: Clock) -> float | None:
        """How strong pruning is to be after the step at `clock`; None before it begins."""
        progress = clock.progress * (clock.step + 1) / clock.step if clock.step else 0.0
        if progress < self.begin - 1e-9:
            return None
        time = max(0.0, (progress - self.begin) / (self.until - self.begin))
        return self.shape(time) if time < 1 - 1e-9 else 1.0


class Scoring(ABC):
    """What masks are chosen by while a network trains."""

    moves: ClassVar[bool] = False
    """Whether masks may change at equal strength."""

    @abstractmethod
    def observe(self, masks: Mapping[str, Tensor]) -> None:
        """Takes note of an optimizer step that the network did under `masks`; gradients are still there."""

    @abstractmethod
    def scores(self) -> Tensors:
        """The scores now."""

    @abstractmethod
    def restore(self) -> None:
        """Gives weights that were left out their values back, before other masks are put on."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What must be checkpointed."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back."""


class ByMagnitude(Scoring):
    """Magnitudes of the weights as they are; what is zero ranks lowest and stays so."""

    def __init__(self, weights: Mapping[str, nn.Parameter]) -> None:
        self.weights = weights

    def observe(self, masks: Mapping[str, Tensor]) -> None:
        pass

    def scores(self) -> Tensors:
        return magnitudes(self.weights)

    def restore(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class ByMovement(Scoring):
    """The sum of -weight · gradient over the steps done (Sanh et al. 2020).

    The gradient is that of the masked network, for every weight; a weight that is left out keeps its value aside and
    comes back with it when its score rises.
    """

    moves = True

    def __init__(self, weights: Mapping[str, nn.Parameter]) -> None:
        self.weights = weights
        self.movement = {name: torch.zeros_like(each) for name, each in weights.items()}
        self.dense = {name: each.detach().clone() for name, each in weights.items()}

    def observe(self, masks: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            if weight.grad is not None:
                self.movement[name] -= self.dense[name] * torch.where(weight.grad.isfinite(), weight.grad, 0)
            self.dense[name] = torch.where(masks[name], weight.detach(), self.dense[name])

    def scores(self) -> Tensors:
        return self.movement

    def restore(self) -> None:
        for name, weight in self.weights.items():
            weight.copy_(self.dense[name])

    def state_dict(self) -> dict[str, Any]:
        return {"movement": dict(self.movement), "dense": dict(self.dense)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, weight in self.weights.items():
            self.movement[name] = state["movement"][name].to(weight.device)
            self.dense[name] = state["dense"][name].to(weight.device)


class Growing(Callback):
    """Masks that grow while a network trains, chosen by a rule from scores; complete at the end of the pace."""

    def __init__(self, weights: Mapping[str, nn.Parameter], scoring: Scoring, rule: Rule, pace: Pace) -> None:
        everything = {name: torch.ones_like(each, dtype=torch.bool) for name, each in weights.items()}
        self.projection = Projection(weights, everything)
        self.scoring, self.rule, self.pace = scoring, rule, pace
        self.strength = 0.0

    @property
    def ready(self) -> bool:
        return self.strength >= 1

    def after_step(self, clock: Clock, optimizer: torch.optim.Optimizer) -> Mapping[str, Tensor]:
        wanted = self.pace.strength(clock)
        if not self.ready:
            self.scoring.observe(self.projection.masks)
            due = clock.step % self.pace.every == 0 or wanted == 1
            if wanted is not None and due and (wanted > self.strength or self.scoring.moves):
                self._grow(max(wanted, self.strength))
        return self.projection.after_step(clock, optimizer)

    def finish(self) -> bool:
        if self.ready:
            return False
        self._grow(1.0)
        return True

    def _grow(self, strength: float) -> None:
        self.strength = strength
        masks = self.rule(self.scoring.scores(), strength)
        self.scoring.restore()
        self.projection.replace(masks)

    def state_dict(self) -> dict[str, Any]:
        parts = {"projection": self.projection.state_dict(), "scoring": self.scoring.state_dict()}
        return {**parts, "strength": self.strength}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.projection.load_state_dict(state["projection"])
        self.scoring.load_state_dict(state["scoring"])
        self.strength = float(state["strength"])


class Unstructured(Scheme):
    """The settings of schemes that set a share of all weights to zero.

    `ratio`: the share of weights that are zero in the end. `scope`: the smallest of all layers together, or of each
    layer. `schedule`: how the share grows while the network trains (recover: joint), at once, linearly or by a cubic
    curve. `begin`: the share of the budget after which it starts to grow. `every`: steps between two renewals of the
    masks. `embeddings`: tables of embeddings are pruned too.
    """

    removes: ClassVar[bool] = False

    ratio: float = Field(default=0.5, gt=0, lt=1)
    scope: Literal["global", "layer"] = "global"
    schedule: Literal["one_shot", "linear", "cubic"] = "cubic"
    begin: float = Field(default=0.0, ge=0, lt=1)
    every: int = Field(default=1, ge=1)
    embeddings: bool = False

    @abstractmethod
    def scoring(self, weights: Mapping[str, nn.Parameter]) -> Scoring:
        """What masks are chosen by while the network trains."""

    def weights(self, module: nn.Module) -> dict[str, nn.Parameter]:
        """The weights that masks may lie on."""
        return prunable(module, self.protect, embeddings=self.embeddings)

    def masks(self, scores: Mapping[str, Tensor], strength: float) -> Tensors:
        """The masks at a strength from 0 to 1."""
        return smallest_out(scores, self.ratio * strength, self.scope)

    def stage(self, number: int, count: int) -> Self:
        """The ratio after `number` of `count` rounds, on the schedule; one_shot: an equal share of what is left in
        each round."""
        if self.schedule == "one_shot":
            return self.replace(ratio=1 - (1 - self.ratio) ** (number / count))
        return self.replace(ratio=self.ratio * SHAPES[self.schedule](number / count))

    def callback(self, module: nn.Module, evidence: Evidence, until: float) -> Callback:
        weights = self.weights(module)
        pace = Pace(self.begin, until, self.every, SHAPES[self.schedule])
        return Growing(weights, self.scoring(weights), self.masks, pace)

    def changes(self, module: nn.Module) -> tuple[Change, ...]:
        return nonzero(self.weights(module))

    def hold(self, module: nn.Module) -> Callback:
        return held(self.weights(module))


def magnitudes(weights: Mapping[str, nn.Parameter]) -> Tensors:
    """Absolute values by name."""
    return {name: each.detach().abs() for name, each in weights.items()}


def masked(module: nn.Module, masks: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> Compressed:
    """A copy with masks on its weights, and what became of each; `notes` for weights that stay, by name."""
    before = {name: int(each.count_nonzero()) for name, each in module.named_parameters()}
    made = copy.deepcopy(module)
    parameters = dict(made.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].mul_(mask)
    changes = [_change(name, before[name], parameters[name]) for name in masks]
    stay = [Change(_path(name), "weights", before[name], before[name], note) for name, note in (notes or {}).items()]
    return Compressed(made, (*changes, *stay))


def nonzero(weights: Mapping[str, Tensor]) -> tuple[Change, ...]:
    """Of each tensor, how many weights there are and how many are not zero."""
    return tuple(_change(name, each.numel(), each) for name, each in weights.items())


def held(weights: Mapping[str, nn.Parameter]) -> Projection:
    """What keeps weights at zero that are zero now."""
    return Projection(weights, {name: each.detach() != 0 for name, each in weights.items()})


def _change(name: str, before: int, weight: Tensor) -> Change:
    after = int(weight.count_nonzero())
    return Change(
        _path(name),
        "weights",
        before,
        after,
        "" if after or not before else "no weight is left; the layer gives its bias",
    )


def _path(name: str) -> str:
    """The layer of a tensor called `weight`, else the tensor itself."""
    return name.removesuffix(".weight")
