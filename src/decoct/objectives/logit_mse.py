"""Squared distance between logits."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from decoct.objectives._logits import LogitsObjective, Temperature
from decoct.objectives._numeric import element_mean, full_precision, logit_pair
from decoct.objectives._shapes import Logits, Loss, Mask
from decoct.training.clock import Clock
from decoct.training.schedules import at


@full_precision
def logit_mse_loss(student: Logits, teacher: Logits, *, temperature: float = 1.0, mask: Mask | None = None) -> Loss:
    """Mean over all elements of ((s − t)/T)², without T².

    Logits `[*B, C]`; `mask` `[*B]` bool: the mean is then over the classes of the items kept. A class at −inf on both
    sides adds 0 (and still counts as an element). 0 at student == teacher. Convention: `F.mse_loss` at T = 1; the
    paper's ½ sum over classes is this times C/2.

    Ba and Caruana 2014, arXiv 1312.6184, equation 2.

    >>> import torch
    >>> logit_mse_loss(torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2), temperature=2.0).item()
    1.25
    """
    student, teacher = logit_pair("logit_mse_loss", student, teacher, mask, temperature)
    dead = (student == -torch.inf) & (teacher == -torch.inf)
    student, teacher = student.masked_fill(dead, 0.0), teacher.masked_fill(dead, 0.0)
    return element_mean(((student - teacher) / temperature).square(), mask)


class LogitMSE(LogitsObjective):
    """Squared distance between the logits (Ba and Caruana 2014); for regression, between the predictions."""

    use: ClassVar[str] = "logit_mse"
    classes: ClassVar[bool] = False
    temperature: Temperature = 1.0

    def value(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, mask: Tensor | None, clock: Clock
    ) -> Tensor:
        return logit_mse_loss(student, teacher, temperature=at(self.temperature, clock), mask=mask)
