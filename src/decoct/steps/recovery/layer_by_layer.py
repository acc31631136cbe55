"""Each block learns to do what the same block of the uncompressed network does, then the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from decoct.artifact import Artifact
from decoct.steps.base import Context, Inputs
from decoct.steps.recovery.base import Recovery

if TYPE_CHECKING:
    from decoct.steps.compressing import Compressing


class LayerByLayer(Recovery):
    """First each block is fitted to the same block of the uncompressed student, fed with that one's inputs; then the
    whole student trains on the step's objective.

    `blocks`: paths of the blocks; "auto": the changed layers of equal input and output. `share`: the part of the
    budget for the blocks; 1 leaves out the second part.
    """

    use: ClassVar[str] = "layer_by_layer"
    blocks: tuple[str, ...] | str = "auto"
    share: float = Field(default=0.3, gt=0, le=1)

    def run(self, step: Compressing, inputs: Inputs, context: Context) -> Artifact:
        raise NotImplementedError
