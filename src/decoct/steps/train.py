"""Train: a model on the task's own loss, without a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import BeforeValidator, Field

from decoct.artifact import Artifact
from decoct.objectives.base import Objective, as_objective
from decoct.objectives.task_loss import TaskLoss
from decoct.spec import Choice
from decoct.steps.base import Context, Inputs
from decoct.steps.learning.settings import Learning
from decoct.tasks.answers.heads import head_split


class Train(Learning):
    """Trains a model on labelled samples; a teacher, or the student alone that a distilled one is compared with.

    `head`: of a task with several heads the one that the model gets, trained on the samples that have targets for it.
    `objective`: what it learns, by default the task's own loss.
    """

    use: ClassVar[str] = "train"
    draws_sources: ClassVar[bool] = True
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": ("spec", "model")}

    objective: Annotated[Objective, Choice("decoct.objectives"), BeforeValidator(as_objective)] = TaskLoss()

    head: str | None = Field(default=None, exclude_if=lambda value: value is None)

    def run(self, inputs: Inputs, context: Context) -> Artifact:
        from decoct.steps.learning.lesson import learn

        own = context if self.head is None else with_one_head(context, self.head)
        return learn(self, inputs, own, self.objective, "labelled")


def with_one_head(context: Context, head: str) -> Context:
    """The same context with one head of the task, and the samples that have targets for it."""
    task = context.task.of_head(head)
    found = {name: head_split(split, head) for name, split in context.data.splits.items()}
    splits = {
        name: context.data.splits[name].take(np.flatnonzero(split.labelled))
        for name, split in found.items()
        if split.labelled is not None
    }
    fingerprint = f"{context.data.fingerprint} {head}"
    return replace(context, task=task, data=replace(context.data, splits=splits, fingerprint=fingerprint))
