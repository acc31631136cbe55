"""BornAgain: generations of one model, each taught by the one before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from decoct.artifact import Artifact
from decoct.objectives.base import Objective, as_objective
from decoct.objectives.kd import KD
from decoct.objectives.task_loss import TaskLoss
from decoct.spec import Choice
from decoct.steps.assistants import shared
from decoct.steps.base import Context, Inputs
from decoct.steps.distill import Distill
from decoct.steps.learning.saving import save_chain
from decoct.steps.learning.settings import Learning
from decoct.steps.train import Train


class BornAgain(Learning):
    """Trains a model, then the same model anew with the former as its teacher, again and again.

    `generations`: how many follow the first. The first is taught by the input "teacher" where there is one, else
    trained on the task's loss. Each starts from weights of its own. The artifact holds the last; those before are its
    parts: generation_0, generation_1, ... `objective`: what each learns from the one before it. `samples`: draw all
    training samples or the labelled ones.

    Furlanello et al. 2018, arXiv 1805.04770, without the ensemble of generations (that is distill with `combine`).
    """

    use: ClassVar[str] = "born_again"
    draws_sources: ClassVar[bool] = True
    rehearsed: ClassVar[bool] = False
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "model": ("spec",),
        "*": ("model", "estimator", "exported", "store", "spec"),
    }

    generations: int = Field(default=2, ge=1, le=1024)
    objective: Annotated[Objective, Choice("decoct.objectives"), BeforeValidator(as_objective)] = (
        0.5 * KD(temperature=1.0) + 0.5 * TaskLoss()
    )
    samples: Literal["all", "labelled"] = "all"

    def run(self, inputs: Inputs, context: Context) -> Artifact:
        teachers = {role: value for role, value in inputs.items() if role != "model"}
        made: dict[str, Artifact] = {}
        for number in range(self.generations + 1):
            name = f"generation_{number}"
            step: Learning = Train(name=name, **shared(self))
            if teachers:
                step = Distill(name=name, **shared(self), objective=self.objective, samples=self.samples)
            seed = (context.seed + number * 1_000_003) % 2**31
            made[name] = context.run(step, {"model": inputs["model"], **teachers}, seed=seed)
            teachers = {"teacher": made[name]}
        return save_chain(made, context)
