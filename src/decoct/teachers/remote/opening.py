"""Opening, all that another process needs to let a teacher answer there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from decoct.artifact import Artifact
from decoct.errors import RecipeError, TeacherChanged
from decoct.models.base import Network
from decoct.models.saving import load_model
from decoct.outputs import Batch, Needs, Outputs
from decoct.teachers.base import Reading, Teacher, for_kind
from decoct.teachers.contract import checksums


@dataclass(frozen=True)
class Opening:
    """A teacher to be opened: how (`kind`), who (`subject`), for what, where, in which precision.

    `sums`: checksums of a module's tensors, which must arrive as they were sent.
    """

    kind: Teacher
    subject: Any
    reading: Reading
    needs: Needs
    device: str = "cpu"
    autocast: torch.dtype | None = None
    sums: dict[str, Any] | None = None

    @contextmanager
    def __call__(self) -> Iterator[Callable[[Batch], Outputs]]:
        """Opens the teacher here, under its contract; answers come on its device."""
        subject = self.subject
        if isinstance(subject, Artifact) and subject.kind == "model":
            subject = load_model(subject)
        module = subject.module if isinstance(subject, Network) else subject
        if self.sums is not None and checksums(module) != self.sums:
            raise TeacherChanged(
                f"the teacher {type(module).__name__} changed between one worker's start and another's"
            )
        opened = self.kind.open(subject, self.reading, self.needs, device=self.device, autocast=self._precision)
        with opened as predict:
            yield lambda batch: predict(batch.to(self.device))

    def _precision(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=self.autocast)


def opening(
    subject: Any,
    reading: Reading,
    needs: Needs,
    *,
    device: torch.device | str,
    autocast: Callable[[], AbstractContextManager[Any]] | None = None,
    kind: Teacher | None = None,
) -> Opening:
    """The Opening of a module, an artifact or the path of an ONNX file; `kind` by default what suits it."""
    from decoct.teachers import CATALOGUE

    if needs.gradient:
        raise RecipeError("a teacher elsewhere answers without gradients, and a term asks for those of its inputs")
    if not isinstance(subject, nn.Module | Network | Artifact | str | Path):
        raise RecipeError(f"a teacher elsewhere is a module, an artifact or an ONNX file, not {type(subject).__name__}")
    if kind is None:
        suited = "onnx" if isinstance(subject, str | Path) else "frozen"
        suited = for_kind(subject) if isinstance(subject, Artifact) else suited
        kind = cast(Teacher, CATALOGUE.resolve(suited)())
    sums: dict[str, Any] | None = None
    if isinstance(subject, nn.Module | Network):
        sums = checksums(subject.module if isinstance(subject, Network) else subject)
    return Opening(kind, subject, reading, needs, str(device), _dtype(autocast, device), sums)


def asked(batch: Batch, side: str) -> Batch:
    """What a teacher of this side needs of a batch: its inputs, its keys, and where answers stand that do not stand at
    the places of the inputs: their trace, and the target, which has as many places."""
    found = Batch({side: batch.side(side)}, keys=batch.keys, seen=batch.seen)
    return replace(found, trace={side: batch.trace[side]}, target=batch.target) if side in batch.trace else found


def _dtype(
    autocast: Callable[[], AbstractContextManager[Any]] | None, device: torch.device | str
) -> torch.dtype | None:
    if autocast is None:
        return None
    kind = torch.device(device).type
    with autocast():
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
