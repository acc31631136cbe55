"""No recovery."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from decoct.artifact import Artifact
from decoct.steps.base import Context, Inputs
from decoct.steps.compressing.recovery.base import Recovery
from decoct.steps.compressing.work import compress

if TYPE_CHECKING:
    from decoct.steps.compressing.compressing import Compressing


class NoRecovery(Recovery):
    """Compresses and trains nothing; recover the student in a step that follows."""

    use: ClassVar[str] = "none"

    def run(self, step: Compressing, inputs: Inputs, context: Context) -> Artifact:
        return compress(step, inputs, context)
