"""TrainClasses: a specialist that knows some of the classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import BeforeValidator, Field

from decoct.artifact import Artifact
from decoct.data.base import Split
from decoct.errors import DataError, RecipeError, did_you_mean
from decoct.objectives.base import Objective, as_objective
from decoct.objectives.task_loss import TaskLoss
from decoct.spec import Choice
from decoct.steps.base import Context, Inputs, StepProblem
from decoct.steps.learning.lesson import learn
from decoct.steps.learning.settings import Learning

if TYPE_CHECKING:
    from decoct.tasks.answers.base import Answer


class TrainClasses(Learning):
    """Trains a model that knows some of the classes, on the labelled samples of these alone.

    `classes`: the names of those; the model has one logit for each, in this order. As a teacher it is matched by name.
    `objective`: what it learns, by default the task's own loss.
    """

    use: ClassVar[str] = "train_classes"
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": ("spec",)}

    classes: tuple[str, ...] = Field(min_length=2)
    objective: Annotated[Objective, Choice("decoct.objectives"), BeforeValidator(as_objective)] = TaskLoss()

    def problems_with(self, answer: Answer) -> Iterator[StepProblem]:
        """What suits no step that learns, and classes of a task without them."""
        yield from super().problems_with(answer)
        if not answer.distribution:
            yield ("classes",), "train_classes needs a classification task, and this one has no classes", self.use

    def run(self, inputs: Inputs, context: Context) -> Artifact:
        return learn(self, inputs, among(context, self.classes), self.objective, "labelled")


def among(context: Context, classes: Sequence[str]) -> Context:
    """The same context with these classes alone, their samples renumbered."""
    task = context.task
    names = task.answer.names
    if "label" not in task.answer.target_columns or "given" in context.data.info:
        raise RecipeError("train_classes: it needs a classification task and a data set with named splits")
    for name in classes:
        if name not in names:
            raise RecipeError(f"classes: {name!r} is none of the task's; {did_you_mean(name, names)}")
    if len(set(classes)) < len(classes):
        raise RecipeError(f"classes: {', '.join(classes)} names one of them twice")
    numbers = np.full(len(names), -1)
    numbers[[names.index(name) for name in classes]] = np.arange(len(classes))
    splits = {name: _of_classes(split, numbers) for name, split in context.data.splits.items()}
    if not len(splits["train"]):
        raise DataError(f"no labelled training sample is of the classes {', '.join(classes)}")
    data = replace(context.data, splits=splits, classes=tuple(classes))
    return replace(context, task=task.with_values({}, task.answer.renamed(tuple(classes))), data=data)


def _of_classes(split: Split, numbers: np.ndarray) -> Split:
    labels = split.columns["label"]
    kept = numbers[labels] >= 0
    if split.labelled is not None:
        kept &= split.labelled
    taken = split.take(np.flatnonzero(kept))
    return replace(taken, columns={**taken.columns, "label": numbers[taken.columns["label"]]}, labelled=None)
