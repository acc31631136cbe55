"""Universal logit distillation: models with different tokenizers and vocabularies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives._logits import Temperature, logits_of, only
from decoct.objectives._numeric import (
    full_precision,
    log_softmax,
    promote,
    refuse_temperature,
    refuse_unlike_mask,
    shape,
)
from decoct.objectives._shapes import Loss, OtherPlaces, OtherSequences, Places, Sequences
from decoct.objectives.base import Objective, Probe, Suits, Term
from decoct.outputs import DENSE, Batch, Needs, Outputs
from decoct.training.clock import Clock
from decoct.training.schedules import at


@full_precision
def uld_loss(
    student: Sequences,
    teacher: OtherSequences,
    *,
    student_mask: Places,
    teacher_mask: OtherPlaces,
    temperature: float = 1.0,
) -> Loss:
    """Mean over samples of the mean over positions of the L1 distance between sorted distributions.

    Student logits `[B, L_s, V_s]`, teacher `[B, L_t, V_t]`, masks `[B, L_s]` and `[B, L_t]` bool. For each sample the
    positions kept on either side are taken in order and cut to the shorter; both distributions at T are sorted
    descending and zero padded to the larger vocabulary. A sample without positions adds 0 and still counts. 0 at
    student == teacher.

    Boizard et al. 2024, arXiv 2402.12030, equation 3.

    >>> s, t = torch.zeros(1, 2, 2), torch.zeros(1, 3, 4)
    >>> kept = dict(student_mask=torch.ones(1, 2) > 0, teacher_mask=torch.ones(1, 3) > 0)
    >>> uld_loss(s, t, **kept).item()
    1.0
    """
    refuse_temperature("uld_loss", temperature)
    if student.ndim != 3 or teacher.ndim != 3 or len(student) != len(teacher):
        raise RecipeError(
            f"uld_loss: student {shape(student)} and teacher {shape(teacher)}; allowed: [B, L, V], equal B"
        )
    refuse_unlike_mask("uld_loss", student_mask, student.shape[:2])
    refuse_unlike_mask("uld_loss", teacher_mask, teacher.shape[:2])
    student, teacher = promote(student, teacher)
    own = _kept_first(student, student_mask)
    theirs = _kept_first(teacher.detach(), teacher_mask)
    length = min(own.shape[1], theirs.shape[1])
    q = _sorted(own[:, :length], temperature)
    p = _sorted(theirs[:, :length], temperature)
    size = max(p.shape[-1], q.shape[-1])
    gap = F.pad(p, (0, size - p.shape[-1])) - F.pad(q, (0, size - q.shape[-1]))
    count = torch.minimum(student_mask.sum(-1), teacher_mask.sum(-1))
    valid = torch.arange(length, device=count.device) < count.unsqueeze(-1)
    distance = torch.where(valid, gap.abs().sum(-1), 0.0).sum(-1) / count.clamp(min=1)
    return distance.mean() if len(distance) else distance.sum()


def _kept_first(logits: Tensor, mask: Tensor) -> Tensor:
    """The positions kept, in order, then the others, set to 0."""
    order = mask.logical_not().to(torch.int8).argsort(dim=1, stable=True)
    filled = logits.masked_fill(~mask.unsqueeze(-1), 0.0)
    return filled.gather(1, order.unsqueeze(-1).expand_as(filled))


def _sorted(logits: Tensor, temperature: float) -> Tensor:
    return log_softmax(logits, temperature).exp().sort(-1, descending=True).values


class ULD(Objective):
    """Compares sorted distributions, so that vocabularies, tokenizers or classes may differ (Boizard 2024).

    `temperature` a number or schedule. Logits `[B, L, V]` of any L and V on both sides, positions by each side's own
    mask; `[B, C]` counts as one position.
    """

    use: ClassVar[str] = "uld"
    temperature: Temperature = 1.0

    def suits(self) -> Suits:
        """Distributions over classes."""
        return "classes"

    def needs(self) -> Mapping[str, Needs]:
        return {"student": DENSE, "teacher": DENSE}

    def build(self, probe: Probe) -> Term:
        """The running term; RecipeError where a side gives no logits or other shapes."""
        term = ULDTerm(self, probe)
        term(probe.student, probe.teachers, probe.batch, Clock())
        return term


class ULDTerm(Term):
    """Feeds both sides' logits and masks to `uld_loss`; items are samples.

    The mask of a side that has none is what the task says of its reader.
    """

    def __init__(self, objective: ULD, probe: Probe) -> None:
        super().__init__()
        self.objective = objective
        self._task, self._reader = probe.task, probe.reader

    def forward(self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock) -> Tensor:
        role = next(iter(teachers))
        own, kept = self._positions("student", student, self._reader, batch)
        theirs, theirs_kept = self._positions("teacher", only(teachers), role, batch)
        temperature = at(self.objective.temperature, clock)
        return uld_loss(own, theirs, student_mask=kept, teacher_mask=theirs_kept, temperature=temperature)

    def _positions(self, who: str, outputs: Outputs, reader: str, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = logits_of(who, outputs, self.objective.label)
        logits = logits.unsqueeze(1) if logits.ndim == 2 else logits
        mask = outputs.mask
        if mask is None:
            mask = self._task.answer.kept(batch, "items", reader if reader in batch.inputs else "teacher")
        if mask is None or mask.ndim == 1:
            return logits, torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
        return logits, mask.reshape(logits.shape[:2])

    def items(self, batch: Batch) -> Tensor | int:
        return len(batch)
