"""Compress a little, learn, repeat."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from decoct.artifact import Artifact
from decoct.steps.base import Context, Inputs
from decoct.steps.compressing.recovery.after import After
from decoct.steps.compressing.recovery.base import Recovery
from decoct.steps.compressing.work import save_last
from decoct.steps.records import REPORT, Report
from decoct.training.compression import Change

if TYPE_CHECKING:
    from decoct.steps.compressing.compressing import Compressing


class Iterative(Recovery):
    """Compresses a little, trains for a part of the budget, and repeats, `rounds` times, to the scheme's full strength.

    Each round goes on from the artifact of the one before; the report is that of the whole way.
    """

    use: ClassVar[str] = "iterative"
    needs: ClassVar[str] = "stage"
    rounds: int = Field(default=3, ge=2)

    def run(self, step: Compressing, inputs: Inputs, context: Context) -> Artifact:
        made: list[Artifact] = []
        for number in range(1, self.rounds + 1):
            scheme = step.scheme.stage(number, self.rounds)
            if made:
                scheme = scheme.following([Change(**each) for each in made[0].json(REPORT, Report)["changes"]])
            part = step.replace(
                name=f"round_{number}",
                scheme=scheme,
                recover=After(),
                budget=step.budget.part(1 / self.rounds),
            )
            made.append(context.run(part, {**inputs, "model": made[-1] if made else inputs["model"]}))
        return save_last(made, step, context)
