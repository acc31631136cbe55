"""EMADistill: a student taught by the moving average of its own weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field

from decoct.artifact import Artifact
from decoct.objectives.base import Objective, as_objective
from decoct.objectives.criterion import needs_of
from decoct.objectives.logit_mse import LogitMSE
from decoct.objectives.task_loss import TaskLoss
from decoct.outputs import Batch, Needs, Outputs, Predictor
from decoct.spec import Choice
from decoct.steps.base import Context, Inputs
from decoct.steps.learning.lesson import Lesson, decided, lesson
from decoct.steps.learning.refusals import refuse_what_cannot_mix
from decoct.steps.learning.saving import save_student
from decoct.steps.learning.settings import Learning
from decoct.training.averages import Average, Following
from decoct.training.schedules import Cosine

AVERAGE = "average"


class EMADistill(Learning):
    """Trains a student that learns from the labels and from the moving average of its own weights (mean teacher).

    The average is the teacher "average", in eval mode, on the same view of all samples, labelled or not; further
    inputs are teachers under their roles. `decay`: how slowly it follows; `objective`: terms with no `teacher` hear the
    average where it is the only one; `keep`: which of the two is scored and saved; `samples` as in distill.

    Tarvainen and Valpola 2017, arXiv 1703.01780.
    """

    use: ClassVar[str] = "ema_distill"
    rehearsed: ClassVar[bool] = False
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "model": ("spec", "model"),
        "*": ("model", "estimator", "exported", "store", "spec"),
    }

    objective: Annotated[Objective, Choice("decoct.objectives"), BeforeValidator(as_objective)] = TaskLoss() + LogitMSE(
        weight=Cosine(start=0.0, end=1.0)
    )
    decay: float = Field(default=0.99, ge=0, lt=1)
    keep: Literal["average", "student"] = "average"
    samples: Literal["all", "labelled"] = "all"

    def run(self, inputs: Inputs, context: Context) -> Artifact:
        roles = [AVERAGE, *(role for role in inputs if role != "model")]
        objective = decided(self, inputs, context, self.objective, roles, alike=[AVERAGE])
        needs = needs_of(objective, roles, context.task.answer.needs)
        refuse_what_cannot_mix(self, objective, inputs, context)
        opened = {role: each for role, each in needs.items() if role != AVERAGE}
        with lesson(self, inputs, context, opened) as at_work:
            module = at_work.student.module
            average = Average(module, self.decay)
            teachers = {AVERAGE: _predictor(average, at_work, needs[AVERAGE]), **at_work.teachers}
            forward = at_work.forward(needs["student"])
            criterion = at_work.criterion(objective, forward, teachers)
            optimizer = at_work.optimizer(module, criterion)
            descent = at_work.descent(forward, criterion, optimizer, teachers)
            kept = replace(at_work.student, module=average.module) if self.keep == "average" else at_work.student
            parts: dict[str, Any] = {"student": average, "model": module}
            if self.keep == "student":
                parts = {"student": module, "average": average}
            history = at_work.fit(
                Following(descent, module, average),
                at_work.source(self.samples),
                at_work.scoring(kept.forward(context.task, Needs())),
                optimizer=optimizer,
                criterion=criterion,
                **parts,
            )
        return save_student(kept, history, context)


def _predictor(average: Average, at_work: Lesson, needs: Needs) -> Predictor:
    """What the averaged weights say, without gradient."""
    answer = replace(at_work.student, module=average.module).forward(at_work.context.task, needs)

    def predict(batch: Batch) -> Outputs:
        with torch.no_grad(), at_work.engine.autocast():
            return answer(batch)

    return predict
