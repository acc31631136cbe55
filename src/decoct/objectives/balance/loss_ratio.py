"""Weights from how fast each loss falls (dynamic weight averaging)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from decoct.objectives.balance.base import Balance, Balancer, Shares
from decoct.tasks.base import Task
from decoct.training.clock import Clock


def loss_ratio_weights(last: Tensor, before: Tensor, *, temperature: float = 2.0) -> Tensor:
    """K · softmax(r / T) with r = last / before: `[K]` mean losses of the last two periods in, weights of sum K out.

    A term whose mean was 0 has ratio 1. Liu et al. 2019 (MTAN), arXiv 1803.10704, equation 7.

    >>> loss_ratio_weights(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 1.0])).tolist()
    [1.0, 1.0]
    """
    ratio = torch.where(before > 0, last / before.clamp(min=1e-30), 1.0)
    return len(last) * torch.softmax(ratio / temperature, 0)


class LossRatio(Balance):
    """Gives more weight to terms whose loss falls more slowly than that of the others (Liu et al. 2019).

    `period` optimizer steps, or an epoch where it is left out: the mean losses of the last two periods decide the
    factors of the next; they are 1 in the first two. `temperature`: a larger one makes the factors more alike.
    """

    use: ClassVar[str] = "loss_ratio"
    temperature: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    period: int | None = Field(default=None, ge=1)

    def build(self, labels: Sequence[str], taught: Sequence[bool], task: Task, student: nn.Module | None) -> Balancer:
        return LossRatioBalancer(self, labels)


class LossRatioBalancer(Balancer):
    """Adds up losses over a period; at the first batch of the next one the factors change."""

    sums: Tensor
    before: Tensor
    now: Tensor

    def __init__(self, balance: LossRatio, labels: Sequence[str]) -> None:
        super().__init__(labels)
        self.balance = balance
        self.period, self.step, self.steps = 0, -1, 0
        count = len(self.labels)
        self.register_buffer("sums", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("before", torch.full((count,), torch.nan, dtype=torch.float64))
        self.register_buffer("now", torch.ones(count))

    def factors(
        self, values: Mapping[str, Tensor], weights: Mapping[str, float], shares: Shares, clock: Clock
    ) -> Tensor:
        if self.learning():
            period = clock.epoch if self.balance.period is None else clock.step // self.balance.period
            if period != self.period and self.steps:
                self._turn()
            self.steps += clock.step != self.step
            self.period, self.step = period, clock.step
            part = [values[name].detach().double() * (1.0 if shares is None else shares[name]) for name in self.labels]
            self.sums.add_(_over_processes(torch.stack(part)))
        return self.now.clone()

    def _turn(self) -> None:
        last = self.sums / self.steps
        found = loss_ratio_weights(last, self.before, temperature=self.balance.temperature)
        self.now.copy_(torch.where(self.before.isnan().any(), self.now, found))
        self.before.copy_(last)
        self.sums.zero_()
        self.steps = 0

    def get_extra_state(self) -> dict[str, int]:
        """Period, last optimizer step and steps in the period: numbers that never leave the CPU."""
        return {"period": self.period, "step": self.step, "steps": self.steps}

    def set_extra_state(self, state: Mapping[str, int]) -> None:
        """Goes back."""
        self.period, self.step, self.steps = state["period"], state["step"], state["steps"]


def _over_processes(parts: Tensor) -> Tensor:
    """The sum over all processes, so that each has the same numbers, in a checkpoint too."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(parts)
    return parts
