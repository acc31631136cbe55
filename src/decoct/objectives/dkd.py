"""Decoupled knowledge distillation: the target class and the other classes apart."""

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
    kl_rows,
    log_softmax,
    logit_pair,
    without_target,
)
from decoct.objectives._shapes import Logits, Loss, Mask, Target
from decoct.training.clock import Clock
from decoct.training.schedules import Scalar, at


@full_precision
def dkd_loss(
    student: Logits,
    teacher: Logits,
    target: Target,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    mask: Mask | None = None,
) -> Loss:
    """α·TCKD + β·NCKD, both T² times a mean over items of a KL, from softmaxes at T.

    Logits `[*B, C]`, class ids `[*B]`, `mask` `[*B]` bool. TCKD: KL of the pairs (p_y, Σ_{c≠y} p_c) and
    (q_y, Σ_{c≠y} q_c). NCKD: KL of the softmaxes over the classes without the target, which is dropped. 0 at
    student == teacher, and with one class. With α = 1 and β = 1 − p_y for each item it is `kd_loss`. The authors' code
    takes the same means; it lowers the target's logit by 1000 instead of dropping it, which is the same up to logits
    of a few hundred. RecipeError: a target outside the classes that the mask keeps.

    Zhao et al. 2022, arXiv 2203.08679, equation 7.

    >>> s, t = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[2.0, 1.0, 0.0]])
    >>> dkd_loss(t, t, torch.tensor([0])).item()
    0.0
    >>> dkd_loss(s, t, torch.tensor([0])).item() > 0
    True
    """
    student, teacher = logit_pair("dkd_loss", student, teacher, mask, temperature)
    target = class_target("dkd_loss", student, target, mask)
    student, teacher = student / temperature, teacher / temperature
    (s_rest, s_left), (t_rest, t_left) = without_target(student, target), without_target(teacher, target)
    tckd = kl_rows(_pair(teacher, t_rest, t_left, target), _pair(student, s_rest, s_left, target))
    nckd = kl_rows(F.log_softmax(t_rest, -1), F.log_softmax(s_rest, -1))
    return temperature**2 * (alpha * item_mean(tckd, mask) + beta * item_mean(nckd, mask))


def _pair(logits: Tensor, rest: Tensor, left: Tensor, target: Tensor) -> Tensor:
    """`[*B, 2]`: log probability of the target and of all the rest."""
    own = logits.gather(-1, target.unsqueeze(-1))
    others = torch.where(left, rest.logsumexp(-1), -torch.inf).unsqueeze(-1)
    return log_softmax(torch.cat([own, others], -1), 1.0)


class DKD(LogitsObjective):
    """Distils the target class and the other classes apart, each with its weight (Zhao 2022).

    `alpha`: weight of the target class, a number or schedule. `beta`: weight of the other classes, a number or
    schedule.
    """

    use: ClassVar[str] = "dkd"
    supervised: ClassVar[bool] = True
    alpha: Scalar = 1.0
    beta: Scalar = 8.0
    temperature: Temperature = 4.0

    def value(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, mask: Tensor | None, clock: Clock
    ) -> Tensor:
        assert target is not None
        alpha, beta, temperature = at(self.alpha, clock), at(self.beta, clock), at(self.temperature, clock)
        return dkd_loss(student, teacher, target, alpha=alpha, beta=beta, temperature=temperature, mask=mask)
