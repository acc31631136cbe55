"""Weights from validation: the teacher's influence falls when the student stops getting better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.objectives.balance.base import Balance, Balancer, Shares
from decoct.tasks.base import Task
from decoct.training.clock import Clock


class ValidationBalance(Balance):
    """Multiplies the weight of the taught terms by `factor` when validation has not improved for `patience` times.

    The score is the task's main metric; better by more than `tolerance` counts. `factor` 0 stops the teacher at once,
    as in early-stopped distillation (Cho and Hariharan 2019, arXiv 1910.01348, section 4.3); `least` is where the
    factors end. Terms without a teacher keep their weight, and there must be one.
    """

    use: ClassVar[str] = "validation"
    factor: float = Field(default=0.5, ge=0, lt=1)
    patience: int = Field(default=2, ge=1)
    tolerance: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    least: float = Field(default=0.0, ge=0, lt=1)

    def build(self, labels: Sequence[str], taught: Sequence[bool], task: Task, student: nn.Module | None) -> Balancer:
        """The running balancer; RecipeError where all terms, or none, listen to a teacher."""
        if all(taught) or not any(taught):
            kind = "every term listens" if all(taught) else "no term listens"
            raise RecipeError(
                f"balance is validation, and {kind} to a teacher ({', '.join(labels)}); it moves weight from taught "
                "terms to others, such as kd and task_loss"
            )
        return ValidationBalancer(self, labels, taught, task)


class ValidationBalancer(Balancer):
    """Counts validations without a better score."""

    watches = True
    now: Tensor
    taught: Tensor

    def __init__(self, balance: ValidationBalance, labels: Sequence[str], taught: Sequence[bool], task: Task) -> None:
        super().__init__(labels)
        self.balance = balance
        self.metric, self.mode = task.metric
        self.register_buffer("now", torch.ones(len(labels)))
        self.register_buffer("taught", torch.tensor(list(taught)), persistent=False)
        self.best: float | None = None
        self.waited = 0

    def factors(
        self, values: Mapping[str, Tensor], weights: Mapping[str, float], shares: Shares, clock: Clock
    ) -> Tensor:
        return self.now.clone()

    def observe(self, scores: Mapping[str, float]) -> None:
        """Hears a validation; a score that is not a number counts as no better."""
        score = float(scores[self.metric])
        if not math.isnan(score) and (self.best is None or self._gain(score) > self.balance.tolerance):
            self.best, self.waited = score, 0
            return
        self.waited += 1
        if self.waited >= self.balance.patience:
            lowered = (self.now * self.balance.factor).clamp(min=self.balance.least)
            self.now.copy_(torch.where(self.taught, lowered, self.now))
            self.waited = 0

    def _gain(self, score: float) -> float:
        assert self.best is not None
        return score - self.best if self.mode == "max" else self.best - score

    def get_extra_state(self) -> dict[str, float | int | None]:
        """The best score so far, and how many validations ago it was."""
        return {"best": self.best, "waited": self.waited}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Goes back."""
        self.best, self.waited = state["best"], state["waited"]
