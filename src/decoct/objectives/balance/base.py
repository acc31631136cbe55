"""Balance (data) and Balancer (what it builds): factors on the terms of a sum, and how they change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from decoct.spec import Spec
from decoct.tasks.base import Task
from decoct.training.clock import Clock

Shares = Mapping[str, Tensor | float] | None
"""What part of a window's items a batch holds, by label; None where the batch is the window."""


class Balance(Spec):
    """Describes how the weights of a sum's terms change with what training shows; belongs to the sum that is trained.

    The factor of each term multiplies its own weight. All factors are 1 at the start.
    """

    @abstractmethod
    def build(self, labels: Sequence[str], taught: Sequence[bool], task: Task, student: nn.Module | None) -> Balancer:
        """The running balancer of terms with these labels; `taught` says which of them listen to a teacher."""


class Balancer(nn.Module, ABC):
    """Factors on the terms of a sum. Its parameters and buffers are checkpointed with the criterion's.

    `splittable`: a window may be split into batches and processes. `watches`: it needs the scores of validation.
    """

    splittable: bool = True
    watches: bool = False
    used: Tensor

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__()
        self.labels = tuple(labels)
        self.register_buffer("used", torch.ones(len(self.labels)))

    @abstractmethod
    def factors(
        self, values: Mapping[str, Tensor], weights: Mapping[str, float], shares: Shares, clock: Clock
    ) -> Tensor:
        """`[terms]`, the factors of this batch. In training it may learn from `values` (with their graphs)."""

    def penalty(self, shares: Shares) -> Tensor | None:
        """What is added to the sum so that learned factors stay where they should; nothing by default."""
        return None

    def observe(self, scores: Mapping[str, float]) -> None:
        """Hears the scores of a validation; by default it does not care."""

    def forward(
        self, values: Mapping[str, Tensor], weights: Mapping[str, float], shares: Shares, clock: Clock
    ) -> Tensor:
        """Σ factor · weight · share · value, and the penalty."""
        factors = self.factors(values, weights, shares, clock)
        total: Tensor | None = None
        for factor, label in zip(factors.unbind(), self.labels):
            value = factor * weights[label] * values[label]
            value = value if shares is None else value * shares[label]
            total = value if total is None else total + value
        assert total is not None
        if self.learning():
            with torch.no_grad():
                self.used.copy_(factors)
        penalty = self.penalty(shares)
        return total if penalty is None else total + penalty

    def last(self) -> dict[str, float]:
        """The factors of the last training step, by label."""
        return dict(zip(self.labels, self.used.tolist()))

    def learning(self) -> bool:
        """Whether this is a training step, not a look at the loss."""
        return self.training and torch.is_grad_enabled()
