"""Assistants: a chain of sizes from the teacher to the student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from decoct.artifact import Artifact
from decoct.models.base import Model, shorthand
from decoct.objectives.base import Objective, as_objective
from decoct.objectives.kd import KD
from decoct.objectives.task_loss import TaskLoss
from decoct.spec import Choice
from decoct.steps.base import Context, Inputs
from decoct.steps.distill import Distill
from decoct.steps.learning.saving import save_chain
from decoct.steps.learning.settings import Learning


class Assistants(Learning):
    """Distils the teacher into an assistant, that one into the next, and the last into the student.

    `assistants`: models from the largest to the smallest; each, and the student, is a distill step with these settings
    and the budget as given. The assistants are parts of the artifact, by their use: assistant_1, assistant_2, ...
    `objective`: what each learns from the one before it. `samples`: draw all training samples or the labelled ones.

    Mirzadeh et al. 2020, arXiv 1902.03393.
    """

    use: ClassVar[str] = "assistants"
    draws_sources: ClassVar[bool] = True
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "model": ("spec", "model"),
        "teacher": ("model", "estimator", "exported", "store", "spec"),
    }

    assistants: tuple[Annotated[Model, Choice("decoct.models"), BeforeValidator(shorthand)], ...] = Field(min_length=1)
    objective: Annotated[Objective, Choice("decoct.objectives"), BeforeValidator(as_objective)] = (
        0.9 * KD(temperature=4.0) + 0.1 * TaskLoss()
    )
    samples: Literal["all", "labelled"] = "all"

    def run(self, inputs: Inputs, context: Context) -> Artifact:
        names = [f"assistant_{number}" for number in range(1, len(self.assistants) + 1)]
        chain = dict(zip(names, self.assistants)) | {"student": inputs["model"]}
        teacher = inputs["teacher"]
        made: dict[str, Artifact] = {}
        for name, model in chain.items():
            step = Distill(name=name, **shared(self), objective=self.objective, samples=self.samples)
            teacher = made[name] = context.run(step, {"model": model, "teacher": teacher})
        return save_chain(made, context)


def shared(step: Learning) -> dict[str, object]:
    """The settings that every learning step has, for another step."""
    return {name: getattr(step, name) for name in Learning.model_fields if name not in ("name", "inputs")}
