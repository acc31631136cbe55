"""Train: a model on the task's own loss, without a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import BeforeValidator

from decoct.artifact import Artifact
from decoct.objectives.base import Objective, as_objective
from decoct.objectives.task_loss import TaskLoss
from decoct.spec import Choice
from decoct.steps.base import Context, Inputs
from decoct.steps.learning.lesson import learn
from decoct.steps.learning.settings import Learning


class Train(Learning):
    """Trains a model on labelled samples; a teacher, or the student alone that a distilled one is compared with."""

    use: ClassVar[str] = "train"
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": ("spec", "model")}

    objective: Annotated[Objective, Choice("decoct.objectives"), BeforeValidator(as_objective)] = TaskLoss()

    def run(self, inputs: Inputs, context: Context) -> Artifact:
        return learn(self, inputs, context, self.objective, "labelled")
