"""Weights from learned uncertainties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from decoct.objectives.balance.base import Balance, Balancer, Shares
from decoct.tasks.base import Task
from decoct.training.clock import Clock


def uncertainty_loss(values: Tensor, log_variance: Tensor) -> Tensor:
    """Σ exp(−s) · value + s/2, s = log σ²: values `[K]` and log variances `[K]`, both with gradient.

    For fixed values it is least at exp(s) = 2 · value. The form for class likelihoods is taken for every term; for a
    squared error the paper has half the first summand. Kendall et al. 2018, arXiv 1705.07115, equation 10.

    >>> uncertainty_loss(torch.tensor([2.0, 3.0]), torch.zeros(2)).item()
    5.0
    """
    return (torch.exp(-log_variance) * values + 0.5 * log_variance).sum()


class Uncertainty(Balance):
    """Learns a log variance s for each term: its factor is exp(−s), and s/2 is added (Kendall et al. 2018).

    The log variances are trained by the student's optimizer. Terms must not fall below 0, where no variance is best.
    The logged loss holds the added part, so it may be below 0.
    """

    use: ClassVar[str] = "uncertainty"

    def build(self, labels: Sequence[str], taught: Sequence[bool], task: Task, student: nn.Module | None) -> Balancer:
        return UncertaintyBalancer(labels)


class UncertaintyBalancer(Balancer):
    """One learned number a term, 0 at first."""

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__(labels)
        self.log_variance = nn.Parameter(torch.zeros(len(self.labels)))

    def factors(
        self, values: Mapping[str, Tensor], weights: Mapping[str, float], shares: Shares, clock: Clock
    ) -> Tensor:
        return torch.exp(-self.log_variance)

    def penalty(self, shares: Shares) -> Tensor | None:
        if shares is None:
            return 0.5 * self.log_variance.sum()
        parts = [0.5 * each * shares[label] for each, label in zip(self.log_variance.unbind(), self.labels)]
        return torch.stack(parts).sum()
