"""The Term of every objective over logits, and the field types that they share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives._fields import Fraction as Fraction
from decoct.objectives._fields import Temperature as Temperature
from decoct.objectives.base import Objective, Probe, Term
from decoct.objectives.refine.base import all_classes
from decoct.outputs import Batch, Outputs, TopK
from decoct.training.clock import Clock


def logits_of(who: str, outputs: Outputs, label: str) -> Tensor:
    """The logits, or those that a teacher's largest probabilities stand for; RecipeError where the model gave none."""
    if outputs.logits is None and outputs.top is not None:
        return all_classes(outputs.top, label)
    if outputs.logits is None:
        raise RecipeError(f"{label}: the {who} gives no logits; use an objective over features or values")
    return outputs.logits


def only(teachers: Mapping[str, Outputs]) -> Outputs:
    """The one teacher that the criterion picked."""
    assert len(teachers) == 1, f"one teacher expected, got {', '.join(teachers)}"
    return next(iter(teachers.values()))


class LogitsObjective(Objective):
    """An objective that is a function of the two sides' logits and perhaps the target.

    `classes`: it reads the logits as one distribution over classes, so that predicted numbers are refused.
    """

    classes: ClassVar[bool] = True

    @abstractmethod
    def value(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, mask: Tensor | None, clock: Clock
    ) -> Tensor:
        """The loss of logits `[*B, C]`; `target` is None unless `supervised`."""

    def build(self, probe: Probe) -> Term:
        """The running term; RecipeError where student and teacher have unlike logits."""
        student = logits_of("student", probe.student, self.label)
        top = _top_of(self, probe.teachers)
        if isinstance(self, TopKObjective) and top is not None:
            self.value_of_top_k(student, top, probe.student.mask, Clock())
        elif self.taught:
            teacher = logits_of("teacher", only(probe.teachers), self.label)
            if student.shape != teacher.shape:
                raise RecipeError(
                    f"{self.label}: student logits {list(student.shape)} and teacher logits {list(teacher.shape)}; "
                    f"the shapes must be equal"
                )
        if self.classes:
            self._refuse_numbers(student, probe)
        return LogitsTerm(self, probe)

    def _refuse_numbers(self, student: Tensor, probe: Probe) -> None:
        target = probe.batch.target
        numbers = self.supervised and (not isinstance(target, Tensor) or target.is_floating_point())
        if numbers or (self.taught and student.shape[-1] == 1):
            raise RecipeError(
                f"{self.label}: it is for classes, and task {probe.task.use!r} has outputs {list(student.shape)} "
                f"that are no distribution over classes; use task_loss, regression_kd or logit_mse"
            )


class TopKObjective(LogitsObjective):
    """An objective over logits that can also hear a teacher of which only the largest probabilities are known."""

    @abstractmethod
    def value_of_top_k(self, student: Tensor, targets: TopK, mask: Tensor | None, clock: Clock) -> Tensor:
        """The loss of the student's logits `[*B, C]`, without the teacher's; RecipeError for what needs them all."""


def _top_of(objective: LogitsObjective, teachers: Mapping[str, Outputs]) -> TopK | None:
    """What the teacher says in place of logits."""
    if not objective.taught:
        return None
    outputs = only(teachers)
    return outputs.top if outputs.logits is None else None


class LogitsTerm(Term):
    """Feeds logits, target and mask to its objective's function. Items: samples, or positions that the mask keeps."""

    selection = "mask"

    def __init__(self, objective: LogitsObjective, probe: Probe) -> None:
        super().__init__()
        self.objective = objective
        self.splittable = objective.splittable
        self._positions = probe.student.mask is not None
        self._task = probe.task

    def forward(self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock) -> Tensor:
        objective, label = self.objective, self.objective.label
        own = theirs = logits_of("student", student, label)
        if objective.taught:
            top = _top_of(objective, teachers)
            if top is not None and isinstance(objective, TopKObjective):
                return objective.value_of_top_k(own, top, student.mask, clock)
            theirs = logits_of("teacher", only(teachers), label)
        target = batch.target if objective.supervised else None
        return objective.value(own, theirs, target, student.mask, clock)

    def items(self, batch: Batch) -> Tensor | int:
        return self._task.answer.items(batch) if self._positions else len(batch)
