"""Early, what a training asks whether it ends before its budget: its own rule, and those who watch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from decoct.errors import RecipeError, did_you_mean
from decoct.training.base import Options
from decoct.training.callback import CHOSEN
from decoct.training.log import Log
from decoct.training.position import Position
from decoct.training.state import EachRandomness


class Early:
    """The `stop` and the `watch` of some options."""

    def __init__(self, options: Options, random: EachRandomness) -> None:
        self.stop, self.watch = options.stop, options.watch
        self.processes, self.random = options.processes, random

    def enough(self, scores: Mapping[str, float], position: Position) -> str:
        """Why these scores end training; empty while they do not, and while a callback's work is under way."""
        stop = self.stop
        under_way = CHOSEN in scores and scores[CHOSEN] != scores[CHOSEN]
        if stop is None or position.stopped or under_way:
            return ""
        if stop.name not in scores:
            raise RecipeError(f"stop: validation gives no score {stop.name!r}; {did_you_mean(stop.name, scores)}")
        return stop.offer(scores[stop.name], position.step)

    def told(self, log: Log) -> str:
        """Shows the last record to those who watch; why they want training to end. They draw no number of training."""
        watch = self.watch
        if watch is None:
            return ""
        randomness = self.random.own.state_dict()
        try:
            return self.processes.shared(lambda: watch(log.records[-1]))
        finally:
            self.random.own.load_state_dict(randomness)

    def state_dict(self) -> dict[str, Any]:
        """What those who watch want to be kept."""
        found = {} if self.watch is None else self.watch.state_dict()
        return {"watch": found} if found else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Gives it back to them."""
        if self.watch is not None and "watch" in state:
            self.watch.load_state_dict(state["watch"])
