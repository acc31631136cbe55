"""Teacher, the Spec of a predictor that a student learns from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from decoct.models.interface import InputKind, Port
from decoct.outputs import Batch, Needs, Outputs, Predictor
from decoct.spec import Spec

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from decoct.artifact import Artifact
    from decoct.models.base import Network


class Reading(Protocol):
    """How one model is asked and what its answers mean: what a task says of one of its readers."""

    @property
    def reader(self) -> str:
        """Whose inputs of a batch it takes."""

    @property
    def kind(self) -> InputKind:
        """What the model takes as a whole."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes that it answers with; empty where there are none."""

    @property
    def distribution(self) -> bool:
        """Whether it answers with a distribution over classes, or with numbers."""

    @property
    def per_pixel(self) -> bool:
        """Whether the model gives maps, of which each pixel is answered."""

    @property
    def outputs(self) -> Mapping[str, Port]:
        """What its exported file gives, by name."""

    def of(self, batch: Batch) -> Any:
        """Its inputs of a batch."""

    def forward(self, network: Network, batch: Batch, needs: Needs) -> Outputs:
        """What a network says about a batch."""

    def preprocessing(self) -> nn.Module:
        """Raw inputs -> what a network takes."""

    def feed(self, batch: Batch) -> dict[str, np.ndarray]:
        """What a file takes for a batch, by input name."""

    def length(self, batch: Batch) -> int | None:
        """How many places answers about a batch are padded to; None where all samples have as many."""

    def from_file(self, arrays: Mapping[str, np.ndarray], batch: Batch) -> Outputs:
        """What a file said about a batch."""


class Teacher(Spec):
    """Describes how an artifact or a module answers as a teacher."""

    @abstractmethod
    def open(
        self,
        subject: Any,
        reading: Reading,
        needs: Needs,
        *,
        device: torch.device | str = "cpu",
        autocast: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> AbstractContextManager[Predictor]:
        """A predictor under the teacher contract while the body runs; on leaving, the contract is checked.

        `subject`: a module or Network (already built), or the Artifact that holds what answers; `reading`: how it is
        asked.
        Contract: eval mode everywhere (dropout, batch norm), no parameter requires a gradient, `no_grad` (never
        inference_mode), buffers and parameters unchanged by checksum before and after, in no optimizer or checkpoint.
        A breach raises TeacherChanged naming the buffer. The module's own modes and flags are restored at the end.
        """


def for_kind(artifact: Artifact | None) -> str:
    """The catalogue key of the teacher that suits an artifact's kind (a plain module: frozen)."""
    known = {"estimator": "estimator", "exported": "onnx", "store": "stored"}
    return known.get(artifact.kind if artifact else "model", "frozen")
