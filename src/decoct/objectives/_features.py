"""The Term of every objective over features: pairs of layers, adapters between unlike shapes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from decoct.errors import RecipeError, did_you_mean
from decoct.objectives._logits import only
from decoct.objectives.base import Objective, Probe, Term
from decoct.outputs import Batch, Needs, Outputs
from decoct.training.clock import Clock

Layers = Annotated[Mapping[str, str], Field(min_length=1)]
"""Pairs of module paths, student's to teacher's: `{"layer3": "blocks.8"}`."""


class FeatureObjective(Objective):
    """An objective that compares features of pairs of layers; its value is the sum over the pairs."""

    adapts: ClassVar[bool] = False
    """Whether student features of another width are led through a learned adapter first."""

    layers: Layers

    def needs(self) -> Mapping[str, Needs]:
        return {
            "student": Needs(features=frozenset(self.layers)),
            "teacher": Needs(features=frozenset(self.layers.values())),
        }

    @abstractmethod
    def pair(self, student: Tensor, teacher: Tensor, clock: Clock) -> Tensor:
        """The loss of one pair of features."""

    def build(self, probe: Probe) -> Term:
        """The running term; RecipeError where a pair of shapes cannot work, naming both."""
        return FeatureTerm(self, probe)


class FeatureTerm(Term):
    """Feeds pairs of features to its objective's function, the student's through an adapter where widths differ."""

    def __init__(self, objective: FeatureObjective, probe: Probe) -> None:
        super().__init__()
        self.objective = objective
        self.splittable = objective.splittable
        teacher = only(probe.teachers)
        adapters = []
        for own, theirs in objective.layers.items():
            s = feature(objective, "student", probe.student, own)
            t = feature(objective, "teacher", teacher, theirs)
            adapter = adapter_for(objective.label, own, s, theirs, t) if objective.adapts else nn.Identity()
            adapters.append(adapter.to(s.device))
            objective.pair(adapter(s.detach().float()), t.float(), Clock())
        self.adapters = nn.ModuleList(adapters)
        for adapter in self.adapters:
            for module in adapter.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.reset_running_stats()

    def forward(self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock) -> Tensor:
        teacher = only(teachers)
        total: Tensor | None = None
        for adapter, (own, theirs) in zip(self.adapters, self.objective.layers.items()):
            s = adapter(feature(self.objective, "student", student, own))
            value = self.objective.pair(s, feature(self.objective, "teacher", teacher, theirs), clock)
            total = value if total is None else total + value
        assert total is not None
        return total

    def items(self, batch: Batch) -> Tensor | int:
        return len(batch)


def feature(objective: Objective, who: str, outputs: Outputs, path: str) -> Tensor:
    """A captured feature; RecipeError with the nearest name where it was not captured."""
    if path not in outputs.features:
        raise RecipeError(
            f"{objective.label}: the {who} gives no feature {path!r}; {did_you_mean(path, outputs.features)}"
        )
    return outputs.features[path]


def adapter_for(label: str, own: str, student: Tensor, theirs: str, teacher: Tensor) -> nn.Module:
    """Identity for equal shapes, else a 1×1 convolution with batch norm and ReLU (maps) or a linear layer (tokens)."""
    shapes = f"student {own} {list(student.shape)} and teacher {theirs} {list(teacher.shape)}"
    if student.shape == teacher.shape:
        return nn.Identity()
    if student.ndim != teacher.ndim or student.ndim not in (2, 3, 4):
        raise RecipeError(f"{label}: {shapes}; a hint needs two maps [B, C, H, W] or two sets of tokens [B, N, D]")
    if student.ndim == 4:
        if student.shape[2:] != teacher.shape[2:]:
            raise RecipeError(f"{label}: {shapes}; H and W must be equal: choose layers of one resolution")
        conv = nn.Conv2d(student.shape[1], teacher.shape[1], 1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(teacher.shape[1]), nn.ReLU())
    if student.shape[:-1] != teacher.shape[:-1]:
        raise RecipeError(f"{label}: {shapes}; the numbers of positions must be equal")
    return nn.Linear(student.shape[-1], teacher.shape[-1])
