"""Distill: a student on what a teacher says and, where there are labels, on the labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from decoct.artifact import Artifact
from decoct.errors import RecipeError, did_you_mean
from decoct.objectives.base import Objective, as_objective
from decoct.objectives.kd import KD
from decoct.objectives.task_loss import TaskLoss
from decoct.spec import Choice
from decoct.steps.base import Context, Inputs, StepProblem
from decoct.steps.learning.settings import Learning
from decoct.teachers.base import Teacher
from decoct.teachers.combining import Combination

if TYPE_CHECKING:
    from decoct.tasks.answers.base import Answer


class Distill(Learning):
    """Trains a student on a teacher's knowledge; every input but "model" is a teacher, by the name of its role.

    `samples`: draw all training samples (unlabelled ones teach through the teacher alone) or the labelled ones;
    `teachers`: how a teacher answers, by role, as `{teacher: {use: estimator, floor: 1.0e-4}}`; `combine`: how several
    answer as one, as `{use: ensemble, weights: confidence}`, to all terms that name no `teacher`. A teacher whose
    artifact names other classes than the task's is matched by name, and has no say in classes that it does not know.
    `objective`: what the student learns, a term or a list of terms.
    """

    use: ClassVar[str] = "distill"
    draws_sources: ClassVar[bool] = True
    version: ClassVar[int] = 1
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "model": ("spec", "model"),
        "teacher": ("model", "estimator", "exported", "store", "spec"),
        "*": ("model", "estimator", "exported", "store", "spec"),
    }

    objective: Annotated[Objective, Choice("decoct.objectives"), BeforeValidator(as_objective)] = (
        0.9 * KD(temperature=4.0) + 0.1 * TaskLoss()
    )
    samples: Literal["all", "labelled"] = "all"
    teachers: dict[str, Annotated[Teacher, Choice("decoct.teachers")]] = {}
    combine: Annotated[Combination, Choice("decoct.teachers.combinations")] | None = Field(
        default=None, exclude_if=lambda value: value is None
    )

    def problems_with(self, answer: Answer) -> Iterator[StepProblem]:
        """What suits no step that learns, and a combination of the other kind of answers."""
        yield from super().problems_with(answer)
        message = None if self.combine is None else self.combine.problem_with(distribution=answer.distribution)
        if message is not None:
            yield ("combine",), message, None

    def run(self, inputs: Inputs, context: Context) -> Artifact:
        from decoct.steps.learning.lesson import learn

        for role in self.teachers:
            if role not in inputs or role == "model":
                roles = [each for each in inputs if each != "model"]
                raise RecipeError(f"teachers.{role}: no such teacher among the inputs; {did_you_mean(role, roles)}")
        return learn(self, inputs, context, self.objective, self.samples, self.teachers, self.combine)
