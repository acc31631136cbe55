"""Cross-entropy cut off after some terms of its Taylor series: a loss that noisy labels hurt less."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from decoct.objectives._logits import LogitsObjective
from decoct.objectives._numeric import (
    class_target,
    full_precision,
    item_mean,
    log_softmax,
    promote,
    refuse_unless,
    refuse_unlike_mask,
)
from decoct.objectives._shapes import Logits, Loss, Mask, Target
from decoct.training.clock import Clock


@full_precision
def taylor_cross_entropy_loss(student: Logits, target: Target, *, order: int = 2, mask: Mask | None = None) -> Loss:
    """Mean over items of Σ_{k=1..order} (1 − q_y)^k / k, q = softmax(student) at T = 1.

    Logits `[*B, C]`, class ids `[*B]`, `mask` `[*B]` bool. The Maclaurin series of −log q_y in 1 − q_y, cut off: at
    order 1 it is 1 − q_y (the mean absolute error's shape, robust to wrong labels), and it grows with the order to
    the cross-entropy. Bounded by Σ 1/k, so that one wrong label weighs little; not 0 unless q_y = 1.
    RecipeError: an order below 1, a target outside the classes that the mask keeps.

    Feng et al. 2020, "Can Cross Entropy Loss Be Robust to Label Noise?", IJCAI 2020, equation 8.

    >>> logits, target = torch.zeros(1, 2), torch.tensor([0])
    >>> tuple(round(taylor_cross_entropy_loss(logits, target, order=k).item(), 4) for k in (1, 2, 50))
    (0.5, 0.625, 0.6931)
    """
    refuse_unless("taylor_cross_entropy_loss", "order", order, order >= 1 and order == int(order), "an integer from 1")
    (student,) = promote(student)
    if mask is not None:
        refuse_unlike_mask("taylor_cross_entropy_loss", mask, student.shape[:-1])
        student = student.masked_fill(~mask.unsqueeze(-1), 0.0)
    target = class_target("taylor_cross_entropy_loss", student, target, mask)
    chosen = log_softmax(student, 1.0).gather(-1, target.unsqueeze(-1)).squeeze(-1)
    rest = -torch.expm1(chosen)
    total = torch.zeros_like(rest)
    for k in range(int(order), 0, -1):  # Horner's scheme
        total = rest * (1 / k + total)
    return item_mean(total, mask)


class TaylorCrossEntropy(LogitsObjective):
    """Cross-entropy with the labels, its series cut off after `order` terms: robust to wrong labels (Feng 2020)."""

    use: ClassVar[str] = "taylor_cross_entropy"
    taught: ClassVar[bool] = False
    supervised: ClassVar[bool] = True
    order: int = Field(default=2, ge=1, le=1000)

    def value(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, mask: Tensor | None, clock: Clock
    ) -> Tensor:
        assert target is not None
        return taylor_cross_entropy_loss(student, target, order=self.order, mask=mask)
