"""Compressing, the settings of the steps that make a student smaller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BeforeValidator

from decoct.objectives.answers import for_numbers
from decoct.objectives.base import Objective, as_objective
from decoct.objectives.kd import KD
from decoct.objectives.task_loss import TaskLoss
from decoct.spec import Choice, Spec
from decoct.steps.learning.settings import Learning
from decoct.teachers.base import Teacher
from decoct.training.budget import Budget
from decoct.training.compression import Scheme

if TYPE_CHECKING:
    from decoct.tasks.answers.base import Answer

GUIDED = 0.9 * KD(temperature=4.0) + 0.1 * TaskLoss()


class Compressing(Learning):
    """The settings of every step that makes a trained model smaller and lets it recover.

    `recover`: when the scheme works and when the student learns; `objective`: what it learns from, by default 0.9 KD
    (of numbers regression_kd) + 0.1 task loss where there is a teacher among the inputs, else the task loss; `samples`,
    `teachers` as in distill.
    """

    draws_sources: ClassVar[bool] = True
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "model": ("model", "spec"),
        "*": ("model", "estimator", "exported", "store", "spec"),
    }

    recover: Spec
    objective: Annotated[Objective, Choice("decoct.objectives"), BeforeValidator(as_objective)] | None = None
    samples: Literal["all", "labelled"] = "all"
    teachers: dict[str, Annotated[Teacher, Choice("decoct.teachers")]] = {}
    budget: Budget = Budget(epochs=5)

    scheme: Scheme

    def lesson_for(self, roles: Sequence[str], answer: Answer) -> Objective:
        """The objective under teachers in `roles`, for a task that answers so."""
        if self.objective is not None:
            return self.objective
        if not roles:
            return TaskLoss()
        return for_numbers(GUIDED) if answer.numbers else GUIDED
