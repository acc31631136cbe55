"""Teacher, the Spec of a predictor that a student learns from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from decoct.outputs import Needs, Predictor
from decoct.spec import Spec

if TYPE_CHECKING:
    import torch

    from decoct.artifact import Artifact
    from decoct.teachers.task import Task


class Teacher(Spec):
    """Describes how an artifact or a module answers as a teacher."""

    @abstractmethod
    def open(
        self,
        subject: Any,
        task: Task,
        needs: Needs,
        *,
        side: str,
        device: torch.device | str = "cpu",
        autocast: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> AbstractContextManager[Predictor]:
        """A predictor under the teacher contract while the body runs; on leaving, the contract is checked.

        `subject`: a module (already built), or the Artifact that holds what answers.
        Contract: eval mode everywhere (dropout, batch norm), no parameter requires a gradient, `no_grad` (never
        inference_mode), buffers and parameters unchanged by checksum before and after, in no optimizer or checkpoint.
        A breach raises TeacherChanged naming the buffer. The module's own modes and flags are restored at the end.
        """


def for_kind(artifact: Artifact | None) -> str:
    """The catalogue key of the teacher that suits an artifact's kind (a plain module: frozen)."""
    known = {"estimator": "estimator", "exported": "onnx", "store": "stored"}
    return known.get(artifact.kind if artifact else "model", "frozen")
