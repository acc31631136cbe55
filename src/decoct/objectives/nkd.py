"""Normalised knowledge distillation: the target's probability, and the other classes renormalised."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from decoct.objectives._logits import LogitsObjective, Temperature
from decoct.objectives._numeric import (
    class_target,
    full_precision,
    item_mean,
    log_softmax,
    logit_pair,
    weigh,
    without_target,
)
from decoct.objectives._shapes import Logits, Loss, Mask, Target
from decoct.training.clock import Clock
from decoct.training.schedules import Scalar, at


@full_precision
def nkd_loss(
    student: Logits,
    teacher: Logits,
    target: Target,
    *,
    gamma: float = 1.5,
    temperature: float = 1.0,
    mask: Mask | None = None,
) -> Loss:
    """Mean of −p₁(y) log q₁(y), plus γT² times the mean of −Σ_{c≠y} p̂ log q̂.

    Logits `[*B, C]`, class ids `[*B]`, `mask` `[*B]` bool. p₁, q₁ are softmaxes at T = 1, p̂, q̂ softmaxes at T over
    the classes without y. A cross-entropy: not 0 at student == teacher. With one class the second part is 0.
    The authors' code takes the same means and factors. RecipeError: a target outside the classes that the mask keeps.

    Yang et al. 2023, "From Knowledge Distillation to Self-Knowledge Distillation", arXiv 2303.13005, equation 8.

    >>> logits = torch.zeros(1, 3)
    >>> round(nkd_loss(logits, logits, torch.tensor([0]), gamma=1.0).item(), 4)
    1.0594
    """
    student, teacher = logit_pair("nkd_loss", student, teacher, mask, temperature)
    target = class_target("nkd_loss", student, target, mask)
    index = target.unsqueeze(-1)
    p = log_softmax(teacher, 1.0).gather(-1, index).squeeze(-1).exp()
    loss = item_mean(-weigh(p, log_softmax(student, 1.0).gather(-1, index).squeeze(-1)), mask)
    t_rest, left = without_target(teacher / temperature, target)
    s_rest, _ = without_target(student / temperature, target)
    rest = -weigh(F.log_softmax(t_rest, -1).exp(), F.log_softmax(s_rest, -1)).sum(-1)
    return loss + gamma * temperature**2 * item_mean(torch.where(left, rest, 0.0), mask)


class NKD(LogitsObjective):
    """Distils the target's probability, and the other classes renormalised among themselves (Yang 2023).

    `gamma`: weight of the other classes, a number or schedule. `temperature`: divides the logits of the other classes
    alone, a number or schedule.
    """

    use: ClassVar[str] = "nkd"
    supervised: ClassVar[bool] = True
    gamma: Scalar = 1.5
    temperature: Temperature = 1.0

    def value(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, mask: Tensor | None, clock: Clock
    ) -> Tensor:
        assert target is not None
        gamma, temperature = at(self.gamma, clock), at(self.temperature, clock)
        return nkd_loss(student, teacher, target, gamma=gamma, temperature=temperature, mask=mask)
