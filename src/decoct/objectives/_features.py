"""The Term of every objective over features: pairs of layers, adapters between unlike shapes, learned networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from decoct.errors import RecipeError, did_you_mean
from decoct.objectives._logits import only
from decoct.objectives._numeric import promote, shape
from decoct.objectives._positions import Positions
from decoct.objectives.adapters import Adapter, Bridge, Needed, Widths, bridge
from decoct.objectives.base import Objective, Probe, Term
from decoct.objectives.layers import embedding_pair, stage_pairs
from decoct.outputs import Batch, Needs, Outputs
from decoct.training.clock import Clock


def _pairs(value: Any) -> Any:
    if value == "auto" or (isinstance(value, Mapping) and value):
        return value
    raise ValueError(f"{value!r} are no layers; write pairs {{STUDENT_PATH: TEACHER_PATH}}, or auto")


Layers = Annotated[Mapping[str, str] | Literal["auto"], BeforeValidator(_pairs)]
"""Pairs of module paths, student's to teacher's: `{"layer3": "blocks.8"}`; or "auto"."""


class LayeredObjective(Objective):
    """An objective over features of pairs of layers; its value is the sum over the pairs.

    `layers`: pairs of module paths, student's to teacher's, or auto: chosen from one forward pass and shown;
    `adapter`: what stands between unlike shapes: auto (what the method needs), none, conv (1×1 with batch norm),
    regressor (conv and ReLU), linear, pool (averaged over positions) or heads.
    """

    auto: ClassVar[Literal["stages", "embedding", "none"]] = "stages"
    """What `layers: auto` takes: every stage, what goes into the last layer, or nothing (then auto is refused)."""
    widths: ClassVar[Widths] = "any"
    """What the adapter auto does about unlike widths."""
    places: ClassVar[bool] = True
    """Whether the method compares place by place, so that sizes must be equal."""
    reshaped: ClassVar[bool] = True
    """Whether features are maps, tokens or vectors that may be viewed as one another."""
    positions: ClassVar[Literal["all", "kept", "pairs kept"]] = "all"
    """Over which positions the mean goes: all, or those that are no padding (see `Positions`)."""

    layers: Layers
    adapter: Adapter = Field(default="auto", exclude_if=lambda value: value == "auto")

    def needs(self) -> Mapping[str, Needs]:
        pairs = self.chosen()
        return {
            "student": Needs(features=frozenset(pairs)),
            "teacher": Needs(features=frozenset(pairs.values())),
        }

    def chosen(self) -> Mapping[str, str]:
        """The pairs; none while they are to be chosen."""
        return {} if self.layers == "auto" else self.layers

    @property
    def undecided(self) -> bool:
        return self.layers == "auto"

    def decide(self, student: Outputs, teacher: Outputs) -> Objective:
        """The same with pairs of layers; RecipeError where the method has no layers of its own to choose."""
        if self.auto == "none":
            raise RecipeError(
                f"{self.label}: layers is auto, and only you know where its features are; name the layers"
            )
        choose = stage_pairs if self.auto == "stages" else embedding_pair
        return self.replace(layers=choose(self.label, student, teacher))


class PairedObjective(LayeredObjective):
    """An objective that compares each pair by itself."""

    @abstractmethod
    def network(self, student: Tensor, teacher: Tensor, probe: Probe, path: str) -> PairNetwork:
        """What compares one pair, made for features of these shapes; `path` is the teacher's."""

    def build(self, probe: Probe) -> Term:
        """The running term; RecipeError where a pair of shapes cannot work, naming both."""
        refuse_open(self)
        return FeatureTerm(self, probe)


class PairNetwork(nn.Module, ABC):
    """Compares one pair of features, already bridged; its parameters are trained with the student."""

    @abstractmethod
    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None, batch: Batch, clock: Clock) -> Tensor:
        """The loss; `mask` `[B, N]` the positions that count, None for all."""


class FeatureObjective(PairedObjective):
    """An objective whose pairs are compared by a function without parameters."""

    @abstractmethod
    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None, clock: Clock) -> Tensor:
        """The loss of one pair of features; `mask` `[B, N]` the positions that count, None for all."""

    def network(self, student: Tensor, teacher: Tensor, probe: Probe, path: str) -> PairNetwork:
        return _Function(self)


class _Function(PairNetwork):
    def __init__(self, objective: FeatureObjective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None, batch: Batch, clock: Clock) -> Tensor:
        return self.objective.pair(student, teacher, mask, clock)


class FeatureTerm(Term):
    """Feeds pairs of features, led through their adapters, to the networks that compare them."""

    def __init__(self, objective: PairedObjective, probe: Probe) -> None:
        super().__init__()
        self.objective = objective
        self.bridges, self.networks = nn.ModuleList(), nn.ModuleList()
        self._shown: list[dict[str, Any]] = []
        teacher = only(probe.teachers)
        for own, theirs in objective.chosen().items():
            s = feature(objective, "student", probe.student, own)
            t = feature(objective, "teacher", teacher, theirs)
            self._add(own, s, theirs, t, probe)
        shapes = [probe.student.features[own].shape for own in objective.chosen()]
        moved = any(made.moves for made in self.bridges if isinstance(made, Bridge))
        masked = objective.positions != "all" and all(len(each) > 2 for each in shapes) and not moved
        self._positions = Positions(objective, probe, objective.chosen() if masked else ())
        self.splittable = objective.splittable and not normalises(self)

    def _add(self, own: str, student: Tensor, theirs: str, teacher: Tensor, probe: Probe) -> None:
        objective = self.objective
        needed = Needed(
            objective.label, objective.adapter, objective.widths, places=objective.places, reshaped=objective.reshaped
        )
        s, t = promote(student.detach())[0], teacher.detach()
        made = bridge(needed, own, s, theirs, t).to(s.device, s.dtype)
        try:
            with torch.no_grad():
                own_view, their_view = made.eval()(s, t)
                network = objective.network(own_view, their_view, probe, theirs).to(s.device, s.dtype)
                network.eval()(own_view, their_view, None, probe.batch, Clock())
        except RecipeError as error:
            where = f"{objective.label}: student {own} {shape(student)} and teacher {theirs} {shape(teacher)}"
            raise RecipeError(f"{where}, adapter {made.text}; {error}") from None
        self.bridges.append(made.train())
        self.networks.append(network.train())
        shapes = {"student_shape": list(student.shape[1:]), "teacher_shape": list(teacher.shape[1:])}
        self._shown.append({"student": own, "teacher": theirs, **shapes, "adapter": made.text})

    def forward(self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock) -> Tensor:
        teacher = only(teachers)
        mask = self._positions.kept(batch)
        total: Tensor | None = None
        for made, network, (own, theirs) in zip(self.bridges, self.networks, self.objective.chosen().items()):
            s = promote(feature(self.objective, "student", student, own))[0]
            t = feature(self.objective, "teacher", teacher, theirs).detach()
            value = network(*made(s, t), mask, batch, clock)
            total = value if total is None else total + value
        assert total is not None
        return total

    def layers(self) -> list[dict[str, Any]]:
        return self._shown

    def items(self, batch: Batch) -> Tensor | int:
        mask = self._positions.kept(batch)
        if mask is None:
            return len(batch)
        return mask.sum(-1).square().sum() if self.objective.positions == "pairs kept" else mask.sum()


def refuse_open(objective: Objective) -> None:
    """RecipeError where layers are still to be chosen."""
    if objective.undecided:
        raise RecipeError(f"{objective.label}: layers is auto and none were chosen; name the layers")


def normalises(module: nn.Module) -> bool:
    """Whether a module looks across the samples of a batch, as batch norm does."""
    return any(isinstance(each, nn.BatchNorm1d | nn.BatchNorm2d) for each in module.modules())


def feature(objective: Objective, who: str, outputs: Outputs, path: str) -> Tensor:
    """A captured feature; RecipeError with the nearest name where it was not captured."""
    if path not in outputs.features:
        raise RecipeError(
            f"{objective.label}: the {who} gives no feature {path!r}; {did_you_mean(path, outputs.features)}"
        )
    return outputs.features[path]
