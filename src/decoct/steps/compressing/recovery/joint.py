"""Compress while learning."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from decoct.artifact import Artifact
from decoct.steps.base import Context, Inputs
from decoct.steps.compressing.recovery.after import After
from decoct.steps.compressing.recovery.base import Recovery
from decoct.steps.compressing.recovery.sparsify import Sparsify
from decoct.steps.compressing.work import compress_and_learn, learn_with_callback

if TYPE_CHECKING:
    from decoct.steps.compressing.compressing import Compressing


class Joint(Recovery):
    """The scheme works while the student trains, under one objective.

    `share`: the part of the budget in which it works. Masks grow to their full extent until then, and stay. Where
    structure is to go, the student trains towards sparsity until then, is cut, and recovers in what is left.
    """

    use: ClassVar[str] = "joint"
    needs: ClassVar[str] = "callback"
    share: float = Field(default=0.6, gt=0, lt=1)

    def run(self, step: Compressing, inputs: Inputs, context: Context) -> Artifact:
        if not step.scheme.removes:
            return learn_with_callback(step, inputs, context, until=self.share)
        first = step.replace(name="sparse", recover=Sparsify(), budget=step.budget.part(self.share), select="last")
        rest = step.replace(recover=After(), budget=step.budget.part(1 - self.share))
        return compress_and_learn(rest, {**inputs, "model": context.run(first, inputs)}, context)
