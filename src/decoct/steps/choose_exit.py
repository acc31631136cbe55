"""ChooseExit: where a network with early exits answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field, model_validator

from decoct.artifact import Artifact
from decoct.errors import RecipeError, did_you_mean
from decoct.models.exits import ExitNet, WithExits, sure
from decoct.models.saving import load_model, load_spec
from decoct.outputs import Needs
from decoct.steps.base import Context, Inputs, Step, StepProblem
from decoct.steps.learning.batches import evaluation_batches, has_split, scores
from decoct.steps.learning.saving import Student, save_student

if TYPE_CHECKING:
    from decoct.tasks.answers.base import Answer


class ChooseExit(Step):
    """Makes a network with early exits answer at one of them, or at the first that is sure enough.

    `exit`: a path among the exits; what comes after it is not run. `threshold`: the highest probability from which on
    an exit's answer stands; the share of validation samples that each exit answers is in the scores, as share.EXIT
    (share.end: the rest). One at a time a sample stops where it is answered; an exported file runs to the end.
    """

    use: ClassVar[str] = "choose_exit"
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": ("model",)}

    exit: str | None = None
    threshold: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _one(self) -> ChooseExit:
        if (self.exit is None) == (self.threshold is None):
            raise ValueError("give exit or threshold, one of the two")
        return self

    def problems_with(self, answer: Answer) -> Iterator[StepProblem]:
        """A threshold on probabilities where there are none."""
        if self.threshold is not None and not answer.distribution:
            message = "threshold is a probability of a class, and the task has no classes; give exit instead"
            yield ("threshold",), message, self.threshold

    def run(self, inputs: Inputs, context: Context) -> Artifact:
        spec, _, side = load_spec(inputs["model"])
        net = load_model(inputs["model"], given=context.given).module
        if not isinstance(spec, WithExits) or not isinstance(net, ExitNet):
            raise RecipeError("inputs.model: it has no exits; give one that self_distill made")
        if self.exit is not None and self.exit not in spec.at:
            raise RecipeError(f"exit is {self.exit!r}; {did_you_mean(self.exit, spec.at)}")
        student = Student(net, spec.replace(exit=self.exit, threshold=self.threshold), side)
        found: dict[str, float] = {}
        if has_split(context, "validation"):
            found |= self._shares(student, context)
        net.exit, net.threshold = self.exit, self.threshold
        if has_split(context, "validation"):
            forward = student.forward(context.task, Needs())
            with torch.no_grad():
                found = {**scores(forward, context, "validation"), **found}
        return save_student(student, None, replace(context, run_seed=inputs["model"].meta["seed"]), scores=found)

    def _shares(self, student: Student, context: Context) -> dict[str, float]:
        if self.threshold is None:
            return {}
        net: Any = student.module
        forward = student.forward(context.task, Needs(frozenset(f"heads.{k}" for k in range(len(net.at)))))
        counts = torch.zeros(len(net.at) + 1)
        with torch.no_grad():
            for batch in evaluation_batches(context, "validation"):
                outputs = forward(batch)
                enough = sure([outputs.features[f"heads.{k}"] for k in range(len(net.at))], self.threshold)
                first = torch.cat([enough, torch.ones(1, len(batch), dtype=torch.bool)]).float().argmax(0)
                counts += torch.bincount(first, minlength=len(counts))
        shares = (counts / counts.sum()).tolist()
        return {f"share.{name}": share for name, share in zip((*net.at, "end"), shares)}
