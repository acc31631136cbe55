"""Recovering, the work of the steps that make a student smaller: a recovery says when it shrinks and when it learns."""

from __future__ import annotations

from typing import Annotated

from pydantic import model_validator

from decoct.artifact import Artifact
from decoct.errors import RecipeError, did_you_mean
from decoct.spec import Choice
from decoct.steps.base import Context, Inputs
from decoct.steps.compressing.compressing import Compressing
from decoct.steps.compressing.recovery.after import After
from decoct.steps.compressing.recovery.base import Recovery


class Recovering(Compressing):
    """A step that makes a trained model smaller by a scheme, in the way that `recover` says."""

    recover: Annotated[Recovery, Choice("decoct.steps.compressing.recovery")] = After()

    @model_validator(mode="after")
    def _scheme_can_recover_so(self) -> Recovering:
        if not self.recover.allows(self.scheme):
            how = "works once" if self.recover.needs == "stage" else "cannot work while the network trains"
            raise ValueError(
                f"recover is {self.recover.use}, and the scheme {self.scheme.use} {how}; use recover: after, "
                "or another scheme"
            )
        return self

    def run(self, inputs: Inputs, context: Context) -> Artifact:
        for role in self.teachers:
            if role not in inputs or role == "model":
                roles = [each for each in inputs if each != "model"]
                raise RecipeError(f"teachers.{role}: no such teacher among the inputs; {did_you_mean(role, roles)}")
        return self.recover.run(self, inputs, context)
