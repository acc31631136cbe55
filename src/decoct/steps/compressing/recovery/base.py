"""Recovery, the Spec that says when a network is compressed and when it learns."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from decoct.artifact import Artifact
from decoct.spec import Spec
from decoct.steps.base import Context, Inputs
from decoct.training.compression import Scheme

if TYPE_CHECKING:
    from decoct.steps.compressing.compressing import Compressing


class Recovery(Spec):
    """When the scheme is at work, and when the student learns what it lost."""

    needs: ClassVar[str] = ""
    """The method that a scheme must have of its own, beyond those of every scheme."""

    def allows(self, scheme: Scheme) -> bool:
        """Whether a scheme can work in this way."""
        return not self.needs or getattr(type(scheme), self.needs) is not getattr(Scheme, self.needs)

    @abstractmethod
    def run(self, step: Compressing, inputs: Inputs, context: Context) -> Artifact:
        """Compresses the input "model" by the step's scheme, recovers it, and writes the artifact."""
