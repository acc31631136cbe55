"""Multi-level logit distillation, batch level: how alike the samples' predictions are."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from decoct.objectives._logits import LogitsObjective, Temperature
from decoct.objectives._numeric import full_precision, kept_rows, log_softmax, logit_pair
from decoct.objectives._shapes import Logits, Loss, Mask
from decoct.training.clock import Clock
from decoct.training.schedules import at


@full_precision
def batch_correlation_loss(
    student: Logits, teacher: Logits, *, temperature: float = 4.0, mask: Mask | None = None
) -> Loss:
    """(1/B) Σ over B×B of (PPᵀ − QQᵀ)², P and Q the softmaxes at T as `[B, C]`, without T².

    Logits `[*B, C]`, `mask` `[*B]` bool: B is then the number of items kept. 0 at student == teacher. Relates the
    items of a batch: not the mean over a split. The authors' code sums it over the temperatures 2 to 6 and over the
    most confident half of the batch.

    Jin et al. 2023, "Multi-level Logit Distillation", equation 6.

    >>> logits = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    >>> batch_correlation_loss(logits, logits).item()
    0.0
    """
    student, teacher = logit_pair("batch_correlation_loss", student, teacher, mask, temperature)
    q, count = kept_rows(log_softmax(student, temperature).exp(), mask)
    p, _ = kept_rows(log_softmax(teacher, temperature).exp(), mask)
    return (torch.mm(p, p.T) - torch.mm(q, q.T)).square().sum() / count.clamp(min=1)


class BatchCorrelation(LogitsObjective):
    """Matches how alike the samples' predictions are to one another (Jin 2023, batch level)."""

    use: ClassVar[str] = "batch_correlation"
    splittable: ClassVar[bool] = False
    temperature: Temperature = 4.0

    def value(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, mask: Tensor | None, clock: Clock
    ) -> Tensor:
        return batch_correlation_loss(student, teacher, temperature=at(self.temperature, clock), mask=mask)
