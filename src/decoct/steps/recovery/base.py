"""Recovery, the Spec that says when a network is compressed and when it learns."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from decoct.artifact import Artifact
from decoct.spec import Spec
from decoct.steps.base import Context, Inputs

if TYPE_CHECKING:
    from decoct.steps.compressing import Compressing


class Recovery(Spec):
    """When the scheme is at work, and when the student learns what it lost."""

    @abstractmethod
    def run(self, step: Compressing, inputs: Inputs, context: Context) -> Artifact:
        """Compresses the input "model" by the step's scheme, recovers it, and writes the artifact."""
