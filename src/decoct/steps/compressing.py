"""Compressing, what the steps that make a student smaller share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, model_validator

from decoct.artifact import Artifact
from decoct.compression import Scheme
from decoct.errors import RecipeError, did_you_mean
from decoct.objectives.base import Objective, as_objective
from decoct.objectives.kd import KD
from decoct.objectives.task_loss import TaskLoss
from decoct.spec import Choice
from decoct.steps.base import Context, Inputs
from decoct.steps.learning import Learning
from decoct.steps.recovery.after import After
from decoct.steps.recovery.base import Recovery
from decoct.teachers.base import Teacher
from decoct.training.budget import Budget

GUIDED = 0.9 * KD(temperature=4.0) + 0.1 * TaskLoss()


class Compressing(Learning):
    """The settings of every step that makes a trained model smaller and lets it recover.

    `recover`: when the scheme works and when the student learns; `objective`: what it learns from, by default 0.9 KD +
    0.1 task loss where there is a teacher among the inputs, else the task loss; `samples`, `teachers` as in distill.
    """

    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "model": ("model", "spec"),
        "*": ("model", "estimator", "exported", "store", "spec"),
    }

    recover: Annotated[Recovery, Choice("decoct.steps.recovery")] = After()
    objective: Annotated[Objective, Choice("decoct.objectives"), BeforeValidator(as_objective)] | None = None
    samples: Literal["all", "labelled"] = "all"
    teachers: dict[str, Annotated[Teacher, Choice("decoct.teachers")]] = {}
    budget: Budget = Budget(epochs=5)

    scheme: Scheme

    @model_validator(mode="after")
    def _scheme_can_recover_so(self) -> Compressing:
        if not self.recover.allows(self.scheme):
            how = "works once" if self.recover.needs == "stage" else "cannot work while the network trains"
            raise ValueError(
                f"recover is {self.recover.use}, and the scheme {self.scheme.use} {how}; use recover: after, "
                "or another scheme"
            )
        return self

    def lesson_for(self, roles: Sequence[str]) -> Objective:
        """The objective under teachers in `roles`."""
        if self.objective is not None:
            return self.objective
        return GUIDED if roles else TaskLoss()

    def run(self, inputs: Inputs, context: Context) -> Artifact:
        for role in self.teachers:
            if role not in inputs or role == "model":
                roles = [each for each in inputs if each != "model"]
                raise RecipeError(f"teachers.{role}: no such teacher among the inputs; {did_you_mean(role, roles)}")
        return self.recover.run(self, inputs, context)
