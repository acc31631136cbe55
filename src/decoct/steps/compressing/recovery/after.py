"""Compress at once, then learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from decoct.artifact import Artifact
from decoct.steps.base import Context, Inputs
from decoct.steps.compressing.recovery.base import Recovery
from decoct.steps.compressing.work import compress_and_learn

if TYPE_CHECKING:
    from decoct.steps.compressing.compressing import Compressing


class After(Recovery):
    """Compresses at once, then trains the smaller student on the step's objective; masks are held meanwhile."""

    use: ClassVar[str] = "after"

    def run(self, step: Compressing, inputs: Inputs, context: Context) -> Artifact:
        return compress_and_learn(step, inputs, context)
