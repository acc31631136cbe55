"""Distillation of independent yes/no outputs (multi-label)."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from decoct.objectives._logits import LogitsObjective, Temperature
from decoct.objectives._numeric import full_precision, item_mean, logit_pair, weigh
from decoct.objectives._shapes import Logits, Loss, Mask
from decoct.objectives.base import Suits
from decoct.training.clock import Clock
from decoct.training.schedules import at


@full_precision
def binary_kd_loss(student: Logits, teacher: Logits, *, temperature: float = 1.0, mask: Mask | None = None) -> Loss:
    """T² times the mean over items of Σ_c KL of Bernoulli(σ(t/T)) and Bernoulli(σ(s/T)).

    Logits `[*B, C]`, one per label; `mask` `[*B]` bool; in nats. Sum over labels, mean over items. 0 at
    student == teacher. Peers: a mean over labels too is this divided by C; `binary_cross_entropy_with_logits` with
    soft targets adds the teacher's entropy and has the same gradient.

    >>> import torch
    >>> round(binary_kd_loss(torch.tensor([[0.0]]), torch.tensor([[2.0]])).item(), 4)
    0.3278
    """
    student, teacher = logit_pair("binary_kd_loss", student, teacher, mask, temperature)
    s, t = student / temperature, teacher / temperature
    yes = weigh(t.sigmoid(), F.logsigmoid(t) - F.logsigmoid(s))
    no = weigh((-t).sigmoid(), F.logsigmoid(-t) - F.logsigmoid(-s))
    return temperature**2 * item_mean((yes + no).sum(-1), mask)


class BinaryKD(LogitsObjective):
    """Draws each label's probability to the teacher's, for multi-label tasks."""

    use: ClassVar[str] = "binary_kd"
    classes: ClassVar[bool] = False
    temperature: Temperature = 1.0

    def suits(self) -> Suits:
        """The logits of labels, of one label too."""
        return "classes"

    def value(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, mask: Tensor | None, clock: Clock
    ) -> Tensor:
        return binary_kd_loss(student, teacher, temperature=at(self.temperature, clock), mask=mask)
