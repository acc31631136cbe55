"""Train towards sparsity, remove nothing yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from decoct.artifact import Artifact
from decoct.steps.base import Context, Inputs
from decoct.steps.compressing.recovery.base import Recovery
from decoct.steps.compressing.work import learn_with_callback

if TYPE_CHECKING:
    from decoct.steps.compressing.compressing import Compressing


class Sparsify(Recovery):
    """Trains the student while the scheme works on its weights; its structure stays, for a later step to remove."""

    use: ClassVar[str] = "sparsify"
    needs: ClassVar[str] = "callback"

    def run(self, step: Compressing, inputs: Inputs, context: Context) -> Artifact:
        return learn_with_callback(step, inputs, context, until=1.0)
