"""Multi-level logit distillation, class level: how classes go together over a batch."""

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
def class_correlation_loss(
    student: Logits, teacher: Logits, *, temperature: float = 4.0, mask: Mask | None = None
) -> Loss:
    """(1/C) Σ over C×C of (PᵀP − QᵀQ)², P and Q the softmaxes at T as `[B, C]`, without T².

    Logits `[*B, C]`, `mask` `[*B]` bool: the rows of P and Q are the items kept. 0 at student == teacher. Grows with
    the square of the number of items; relates them, so it is not the mean over a split. The authors' code sums it over
    the temperatures 2 to 6 and over the most confident half of the batch.

    Jin et al. 2023, "Multi-level Logit Distillation", equation 8.

    >>> class_correlation_loss(torch.zeros(2, 2), torch.tensor([[9.0, -9.0], [9.0, -9.0]]), temperature=1.0).item() > 1
    True
    """
    student, teacher = logit_pair("class_correlation_loss", student, teacher, mask, temperature)
    q, _ = kept_rows(log_softmax(student, temperature).exp(), mask)
    p, _ = kept_rows(log_softmax(teacher, temperature).exp(), mask)
    return (torch.mm(p.T, p) - torch.mm(q.T, q)).square().sum() / q.shape[-1]


class ClassCorrelation(LogitsObjective):
    """Matches how classes go together over a batch (Jin 2023, class level)."""

    use: ClassVar[str] = "class_correlation"
    splittable: ClassVar[bool] = False
    temperature: Temperature = 4.0

    def value(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, mask: Tensor | None, clock: Clock
    ) -> Tensor:
        return class_correlation_loss(student, teacher, temperature=at(self.temperature, clock), mask=mask)
