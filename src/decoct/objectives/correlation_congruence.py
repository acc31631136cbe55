"""Correlation congruence: a Gaussian kernel between the samples of a batch, by its Taylor series."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from decoct.objectives._features import FeatureObjective
from decoct.objectives._maps import vector_pair
from decoct.objectives._numeric import full_precision, item_mean, refuse_unless, unit
from decoct.objectives._shapes import Features, Loss
from decoct.training.clock import Clock


@full_precision
def correlation_congruence_loss(student: Features, teacher: Features, *, gamma: float = 0.4, order: int = 2) -> Loss:
    """Mean over B² of (K_s − K_t)², K = Σ_{k ≤ order} e^{−2γ}(2γ)^k/k! · (XXᵀ)^k elementwise, rows L2-normalised.

    Features `[B, ...]`, flattened to X; widths may differ. 0 at student == teacher. Relates the samples of a batch.

    Peng et al. 2019, arXiv 1904.01802, equations 8 and 10.

    >>> x = torch.randn(3, 4)
    >>> correlation_congruence_loss(x, x).item()
    0.0
    """
    refuse_unless("correlation_congruence_loss", "order", order, order == int(order) and order >= 0, "0 or more")
    s, t = vector_pair("correlation_congruence_loss", student, teacher)
    return item_mean((_kernel(unit(s), gamma, order) - _kernel(unit(t), gamma, order)).square())


def _kernel(x: Tensor, gamma: float, order: int) -> Tensor:
    similarity = x @ x.T
    total, power = torch.zeros_like(similarity), torch.ones_like(similarity)
    for k in range(order + 1):
        total = total + math.exp(-2 * gamma) * (2 * gamma) ** k / math.factorial(k) * power
        power = power * similarity
    return total


class CorrelationCongruence(FeatureObjective):
    """Matches a Gaussian kernel between the samples of a batch (Peng 2019); widths may differ.

    `gamma`: how narrow the kernel is. `order`: terms of its Taylor series after the first.
    """

    use: ClassVar[str] = "correlation_congruence"
    auto: ClassVar[Literal["stages", "embedding", "none"]] = "embedding"
    reshaped: ClassVar[bool] = False
    splittable: ClassVar[bool] = False
    gamma: float = Field(default=0.4, gt=0)
    order: int = Field(default=2, ge=0, le=64)

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None, clock: Clock) -> Tensor:
        return correlation_congruence_loss(student, teacher, gamma=self.gamma, order=self.order)
