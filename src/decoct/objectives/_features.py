"""The Term of every objective over features: pairs of layers, adapters between unlike shapes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from decoct.errors import RecipeError, did_you_mean
from decoct.objectives._logits import only
from decoct.objectives._numeric import promote
from decoct.objectives.base import Objective, Probe, Term
from decoct.outputs import Batch, Needs, Outputs
from decoct.training.clock import Clock

Layers = Annotated[Mapping[str, str], Field(min_length=1)]
"""Pairs of module paths, student's to teacher's: `{"layer3": "blocks.8"}`."""


class FeatureObjective(Objective):
    """An objective that compares features of pairs of layers; its value is the sum over the pairs."""

    adapter: ClassVar[Literal["none", "connector", "regressor"]] = "none"
    """What student features of another width are led through first: nothing, a 1×1 convolution with batch norm
    (connector) and a ReLU (regressor); tokens and vectors a linear layer. It is trained with the student."""

    positions: ClassVar[Literal["all", "kept", "pairs kept"]] = "all"
    """Over which positions the mean goes: all, or those that `attention_mask` of the student's inputs keeps."""

    layers: Layers

    def needs(self) -> Mapping[str, Needs]:
        return {
            "student": Needs(features=frozenset(self.layers)),
            "teacher": Needs(features=frozenset(self.layers.values())),
        }

    @abstractmethod
    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None, clock: Clock) -> Tensor:
        """The loss of one pair of features; `mask` `[B, N]` the positions that count, None for all."""

    def build(self, probe: Probe) -> Term:
        """The running term; RecipeError where a pair of shapes cannot work, naming both."""
        return FeatureTerm(self, probe)


class FeatureTerm(Term):
    """Feeds pairs of features to its objective's function, the student's through an adapter where widths differ."""

    def __init__(self, objective: FeatureObjective, probe: Probe) -> None:
        super().__init__()
        self.objective = objective
        teacher = only(probe.teachers)
        self.adapters = nn.ModuleList()
        for own, theirs in objective.layers.items():
            s = feature(objective, "student", probe.student, own)
            t = feature(objective, "teacher", teacher, theirs)
            adapter = adapter_for(objective, own, s, theirs, t).to(s.device, promote(s)[0].dtype)
            objective.pair(adapter.eval()(promote(s.detach())[0]), t, None, Clock())
            self.adapters.append(adapter.train())
        shapes = [probe.student.features[own].shape for own in objective.layers]
        self._masked = objective.positions != "all" and all(len(shape) > 2 for shape in shapes)
        batch_norm = any(isinstance(module, nn.BatchNorm2d) for module in self.modules())
        self.splittable = objective.splittable and not batch_norm

    def forward(self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock) -> Tensor:
        teacher = only(teachers)
        mask = self._mask(batch)
        total: Tensor | None = None
        for adapter, (own, theirs) in zip(self.adapters, self.objective.layers.items()):
            s = adapter(promote(feature(self.objective, "student", student, own))[0])
            value = self.objective.pair(s, feature(self.objective, "teacher", teacher, theirs), mask, clock)
            total = value if total is None else total + value
        assert total is not None
        return total

    def items(self, batch: Batch) -> Tensor | int:
        mask = self._mask(batch)
        if mask is None:
            return len(batch)
        return mask.sum(-1).square().sum() if self.objective.positions == "pairs kept" else mask.sum()

    def _mask(self, batch: Batch) -> Tensor | None:
        inputs = batch.inputs.get("student")
        if not self._masked or not isinstance(inputs, Mapping) or "attention_mask" not in inputs:
            return None
        mask = inputs["attention_mask"]
        assert isinstance(mask, Tensor)
        return mask.bool()


def feature(objective: Objective, who: str, outputs: Outputs, path: str) -> Tensor:
    """A captured feature; RecipeError with the nearest name where it was not captured."""
    if path not in outputs.features:
        raise RecipeError(
            f"{objective.label}: the {who} gives no feature {path!r}; {did_you_mean(path, outputs.features)}"
        )
    return outputs.features[path]


def adapter_for(objective: FeatureObjective, own: str, student: Tensor, theirs: str, teacher: Tensor) -> nn.Module:
    """Identity for equal widths or no adapter wanted, else a 1×1 convolution (maps) or a linear layer (tokens)."""
    if objective.adapter == "none":
        return nn.Identity()
    if student.ndim != teacher.ndim or student.ndim not in (2, 3, 4):
        raise RecipeError(
            f"{objective.label}: student {own} {list(student.shape)} and teacher {theirs} {list(teacher.shape)}; "
            f"allowed: two maps [B, C, H, W], two sets of tokens [B, N, D] or two vectors [B, D]"
        )
    axis = 1 if student.ndim == 4 else -1
    width, wanted = student.shape[axis], teacher.shape[axis]
    if width == wanted:
        return nn.Identity()
    if student.ndim < 4:
        return nn.Linear(width, wanted)
    layers: list[nn.Module] = [nn.Conv2d(width, wanted, 1, bias=False), nn.BatchNorm2d(wanted)]
    return nn.Sequential(*layers, nn.ReLU()) if objective.adapter == "regressor" else nn.Sequential(*layers)
