"""Several tasks on one kind of sample: one network, a head for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field

from decoct.data.base import Dataset
from decoct.errors import RecipeError
from decoct.spec import Choice
from decoct.tasks.answers.base import Answer
from decoct.tasks.answers.heads import Heads
from decoct.tasks.base import Task
from decoct.tasks.inputs.base import Inputs


class MultiTask(Task):
    """Several answers of one network: `reads` what it reads, `heads` by name what it answers.

    `{reads: {use: images}, heads: {digit: {use: classes}, garment: {use: classes}}}`. A head's classes come from the
    data (`{use: several}` names a data set for each head) where left out; a sample may have targets for some heads
    alone. A term works on one head, `{use: kd, head: digit, teacher: digits}`; a teacher may have one head of several
    (`{use: train, head: digit}` makes it).
    """

    use: ClassVar[str] = "multi_task"
    reads: Annotated[Inputs, Choice("decoct.tasks.inputs")]
    heads: dict[str, Annotated[Answer, Choice("decoct.tasks.answers")]] = Field(min_length=1)

    def resolve(self, data: Dataset) -> Self:
        found = self.reads.resolve_inputs(data)
        task = self.with_values(found, {}) if found else self
        found = task.half_answer().resolve_answer(data, task.reads)
        return task.replace(**found) if found else task

    def half_inputs(self) -> Inputs:
        return self.reads

    def half_answer(self) -> Answer:
        return Heads(heads=self.heads)

    def with_values(self, inputs: Mapping[str, Any], answer: Mapping[str, Any]) -> Self:
        task = self.replace(reads=self.reads.replace(**inputs)) if inputs else self
        return task.replace(**answer) if answer else task

    def as_taught_by(self, theirs: Task) -> Task:
        if not isinstance(theirs, MultiTask):
            raise RecipeError(
                f"teacher: it was made for task {theirs.use!r}, which has no heads, and {self.use!r} has "
                f"{', '.join(self.heads)}; train it under this task, with `head` to name the one that it answers"
            )
        return theirs

    def as_given(self) -> Self:
        return self if "raw" in self.reads.model_fields_set else self.with_values({"raw": True}, {})

    def of_head(self, name: str) -> Self:
        return self.replace(heads={name: self.half_answer().head(name)})
