"""The Term of every objective over logits, and the field types that they share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives._fields import Fraction as Fraction
from decoct.objectives._fields import Temperature as Temperature
from decoct.objectives._selection import places_of
from decoct.objectives._sweep import Hard, Rows, Soft, alone
from decoct.objectives.base import Objective, Probe, Suits, Term
from decoct.objectives.refine.base import all_classes
from decoct.outputs import Batch, Dense, Factored, Needs, Outputs, TopK
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
    `temperature`: both sides' logits are divided by it first, a number or schedule.
    """

    classes: ClassVar[bool] = True

    def suits(self) -> Suits:
        """Distributions over classes, unless it says otherwise."""
        return "classes" if self.classes else "any"

    @abstractmethod
    def value(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, mask: Tensor | None, clock: Clock
    ) -> Tensor:
        """The loss of logits `[*B, C]`; `target` is None unless `supervised`."""

    def swept(self, clock: Clock) -> Soft | Hard | None:
        """Its loss of a row of logits, for a sweep over hidden states and their head; None for what needs them all."""
        return None

    @property
    def _factored(self) -> bool:
        return not self.refine and self.swept(Clock()) is not None

    def needs(self) -> Mapping[str, Needs]:
        """Logits written out, and those other forms that it can hear."""
        forms = {"dense", "factored"} if self._factored else {"dense"}
        found = {"student": Needs(forms=frozenset(forms))}
        if self.taught:
            hears = isinstance(self, TopKObjective) and not self.refine
            found["teacher"] = Needs(forms=frozenset(forms | {"top_k"} if hears else forms))
        return found

    def build(self, probe: Probe) -> Term:
        """The running term; RecipeError where student and teacher have unlike logits."""
        student = _shape_of("student", probe.student, self.label)
        term = LogitsTerm(self, probe)
        if isinstance(self, TopKObjective) and _top_of(self, probe.teachers) is not None:
            with torch.no_grad():
                term(probe.student, probe.teachers, probe.batch, Clock())
        elif self.taught:
            teacher = _shape_of("teacher", only(probe.teachers), self.label)
            if student != teacher:
                raise RecipeError(
                    f"{self.label}: student logits {list(student)} and teacher logits {list(teacher)}; "
                    f"the shapes must be equal"
                )
        if self.classes:
            self._refuse_numbers(student, probe)
        return term

    def _refuse_numbers(self, student: torch.Size, probe: Probe) -> None:
        target = probe.batch.target
        numbers = self.supervised and (not isinstance(target, Tensor) or target.is_floating_point())
        if numbers or (self.taught and student[-1] == 1):
            raise RecipeError(
                f"{self.label}: it is for classes, and task {probe.task.use!r} has outputs {list(student)} "
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
    return only(teachers).top


def _shape_of(who: str, outputs: Outputs, label: str) -> torch.Size:
    """The shape of the logits; RecipeError where the model gave none, or too little to make them of."""
    if outputs.shape is None or outputs.top is not None:
        return logits_of(who, outputs, label).shape
    return outputs.shape


class LogitsTerm(Term):
    """Feeds logits, target and mask to its objective's function. Items: the places at which the student answers."""

    selection = "mask"

    def __init__(self, objective: LogitsObjective, probe: Probe) -> None:
        super().__init__()
        self.objective = objective
        self.splittable = objective.splittable
        self._places = places_of(probe.student)

    def forward(self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock) -> Tensor:
        objective, label = self.objective, self.objective.label
        rows = self.rows(student, teachers, batch, clock)
        if rows is not None:
            return alone(rows)
        own = theirs = logits_of("student", student, label)
        if objective.taught:
            top = _top_of(objective, teachers)
            if top is not None and isinstance(objective, TopKObjective):
                return objective.value_of_top_k(own, top, student.mask, clock)
            theirs = logits_of("teacher", only(teachers), label)
        target = batch.target if objective.supervised else None
        return objective.value(own, theirs, target, student.mask, clock)

    def rows(self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock) -> Rows | None:
        objective, outputs = self.objective, student.distribution
        loss = objective.swept(clock) if isinstance(outputs, Factored) and not objective.refine else None
        if loss is None or not isinstance(outputs, Factored):
            return None
        if isinstance(loss, Hard):
            if batch.target.is_floating_point():
                return None  # distributions over all classes, in which the logits are no greater
            return Rows(objective.label, outputs, loss, student.mask, target=batch.target)
        teacher_outputs = only(teachers)
        teacher = teacher_outputs.distribution
        if teacher is None or (teacher_outputs.top is not None and not isinstance(objective, TopKObjective)):
            teacher = Dense(logits_of("teacher", teacher_outputs, objective.label))
        return Rows(objective.label, outputs, loss, student.mask, teacher)

    def items(self, batch: Batch) -> Tensor | int:
        return len(batch) * self._places
