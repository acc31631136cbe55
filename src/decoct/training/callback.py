"""A callback of training: what acts on the student after each optimizer step (masks, sparsity)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from decoct.outputs import Batch, Predictor
from decoct.training.base import ManagedUpdate
from decoct.training.clock import Clock
from decoct.training.soundness import Answering


class Callback(ABC):
    """Acts on a module's weights after each optimizer step; gradients of the step are still there.

    A proximal step (soft thresholds) or a projection (weights times a mask) belongs here: the forward pass sees its
    result, the module stays plain.
    """

    @abstractmethod
    def after_step(self, clock: Clock, optimizer: torch.optim.Optimizer) -> Mapping[str, Tensor]:
        """Does its work in place, without gradient; returns numbers for the log."""

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether the module is as the scheme wants it in the end, so that its scores may be compared."""

    def finish(self) -> bool:
        """Completes its work when the budget ends before that, as one of seconds may; whether it changed the module.

        Nothing by default. Works in place, without gradient.
        """
        return False

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What must be checkpointed."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back."""


class WithCallback(ManagedUpdate):
    """An update, and after each of its steps a callback's work."""

    def __init__(self, update: ManagedUpdate, callback: Callback, optimizer: torch.optim.Optimizer) -> None:
        self.update, self.callback, self.optimizer = update, callback, optimizer

    def __call__(self, window: Sequence[Batch], clock: Clock) -> Mapping[str, Tensor]:
        logged = self.update(window, clock)
        with torch.no_grad():
            more = self.callback.after_step(clock, self.optimizer)
        return {**logged, **more}

    def finish(self) -> bool:
        """Lets the callback complete its work after the last step; whether it changed the module."""
        with torch.no_grad():
            return self.callback.finish()

    def predictors(self) -> Mapping[str, Predictor]:
        """The models of the update, where it lets them be asked."""
        return self.update.predictors() if isinstance(self.update, Answering) else {}

    def settings(self, clock: Clock) -> dict[str, Any]:
        return self.update.settings(clock)

    def state_dict(self) -> dict[str, Any]:
        return {"update": self.update.state_dict(), "companion": self.callback.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.update.load_state_dict(state["update"])
        self.callback.load_state_dict(state["companion"])


CHOSEN = "chosen"
"""The score by which weights are kept where a callback is at work."""


def once_ready(
    validate: Callable[[], dict[str, float]], callback: Callback, metric: str
) -> Callable[[], dict[str, float]]:
    """`validate` with a score "chosen": the one named `metric` once the callback is ready, NaN before."""

    def scored() -> dict[str, float]:
        found = validate()
        return {**found, CHOSEN: found[metric] if callback.ready else float("nan")}

    return scored
