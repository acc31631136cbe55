"""Ending before the budget does: by a score on validation data, or because somebody who watches says so."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from decoct.spec import Spec


class Stop(Spec):
    """Ends training before its budget, by a score on the validation split.

    `metric`: one of the task's, its main one by default; which way is better comes from it. `patience`: after so many
    validations in a row none of which was better than the best before by more than `min_delta`, in the metric's units;
    `at`: once the metric is as good as that. With both, what comes first. Which weights are kept is the step's
    `select`. Prechelt, Early stopping, but when?, 1998.

    >>> Stop(patience=3)
    Stop(patience=3)
    """

    metric: str | None = None
    patience: int | None = Field(default=None, ge=1)
    min_delta: float = Field(default=0.0, ge=0)
    at: float | None = None

    @model_validator(mode="after")
    def _says_when(self) -> Stop:
        if self.patience is None and self.at is None:
            raise ValueError("give patience (validations without gain), at (a value that is enough), or both")
        if self.patience is None and self.min_delta:
            raise ValueError(f"min_delta is {self.min_delta:g} and belongs to patience, which is missing; give it too")
        return self


class Stopping:
    """A `Stop` at work on a metric called `name`; its state belongs to the checkpoint.

    >>> stopping = Stopping(Stop(patience=2), "accuracy", "max")
    >>> [stopping.offer(score, step) for step, score in enumerate((0.5, 0.6, 0.6))]
    ['', '', '']
    >>> stopping.offer(0.55, 3)
    'accuracy gained nothing in 2 validations; best 0.6, at step 1'
    """

    def __init__(self, rule: Stop, name: str, mode: Literal["max", "min"]) -> None:
        self.rule, self.name = rule, name
        self.sign = 1.0 if mode == "max" else -1.0
        self.best: float | None = None
        self.step = self.waited = 0

    def offer(self, score: float, step: int) -> str:
        """Takes the score of one validation; why training ends, or empty. One that is NaN gains nothing."""
        rule = self.rule
        if rule.at is not None and self.sign * score >= self.sign * rule.at:
            return f"{self.name} is {score:.6g}, which reaches the {rule.at:g} asked for"
        before = -self.sign * float("inf") if self.best is None else self.best
        if self.sign * (score - before) > rule.min_delta:
            self.best, self.step, self.waited = score, step, 0
        else:
            self.waited += 1
        if rule.patience is None or self.waited < rule.patience:
            return ""
        gained = f"no more than {rule.min_delta:g}" if rule.min_delta else "nothing"
        times = "1 validation" if self.waited == 1 else f"{self.waited} validations"
        best = "" if self.best is None else f"; best {self.best:.6g}, at step {self.step}"
        return f"{self.name} gained {gained} in {times}{best}"

    def state_dict(self) -> dict[str, Any]:
        """The best score, its step, and for how many validations nothing was gained."""
        return {"best": self.best, "step": self.step, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back."""
        self.best, self.step, self.waited = state["best"], state["step"], state["waited"]


class Watch(ABC):
    """Who sees every record of a training's log once it is written; of several processes, the first one's."""

    @abstractmethod
    def __call__(self, record: Mapping[str, Any]) -> str:
        """Takes a record, of kind "train" or "validation"; why training should end, or empty."""

    def inside(self, name: str) -> Watch:
        """Who sees the records of a step that runs inside this one."""
        return self

    def state_dict(self) -> dict[str, Any]:
        """What must be checkpointed; nothing by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back."""
