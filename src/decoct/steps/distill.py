"""Distill: a student on what a teacher says and, where there are labels, on the labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator

from decoct.artifact import Artifact
from decoct.objectives.base import Objective, as_objective
from decoct.objectives.kd import KD
from decoct.objectives.task_loss import TaskLoss
from decoct.spec import Choice
from decoct.steps.base import Context, Inputs
from decoct.steps.learning import Learning, learn


class Distill(Learning):
    """Trains a student on a teacher's knowledge; every input but "model" is a teacher, by the name of its role.

    `samples`: draw all training samples (unlabelled ones teach through the teacher alone) or the labelled ones.
    """

    use: ClassVar[str] = "distill"
    version: ClassVar[int] = 1
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "model": ("spec", "model"),
        "teacher": ("model", "estimator", "exported", "spec"),
        "*": ("model", "estimator", "exported", "spec"),
    }

    objective: Annotated[Objective, Choice("decoct.objectives"), BeforeValidator(as_objective)] = (
        0.9 * KD(temperature=4.0) + 0.1 * TaskLoss()
    )
    samples: Literal["all", "labelled"] = "all"

    def run(self, inputs: Inputs, context: Context) -> Artifact:
        return learn(self, inputs, context, self.objective, self.samples)
