"""Who sees a run while it goes on: the display, trackers, and callbacks from Python; all take the same events."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from decoct.errors import RecipeError
from decoct.training.stopping import Watch

Event = Mapping[str, Any]
"""What a watcher sees: `event` is begun, started, progress, record, skipped, done or finished; `step`, `seed`; and what
belongs to it: of a record the line of the log as `record`, of a step that is done its scores, of a run its results."""
HOOKS = ("on_step", "on_validation")


class Callbacks:
    """Objects from Python with `on_step(step, losses)` or `on_validation(step, scores)`, called as training goes on.

    `on_step` comes with each line of the log (`log_every` optimizer steps; losses are means since the last one: the sum
    as "loss", terms by name), `on_validation` with each validation. Training stops, with what it has by then, where one
    returns True or the reason as text, or raises StopIteration. Those that have `state_dict` and `load_state_dict`
    (plain data) go on after an interruption as they were; steps after the last checkpoint are told them again.
    """

    def __init__(self, callbacks: Sequence[Any]) -> None:
        for each in callbacks:
            if not any(callable(getattr(each, name, None)) for name in HOOKS):
                raise RecipeError(
                    f"callbacks: {type(each).__name__} has neither {' nor '.join(HOOKS)}; give it "
                    "on_step(step, losses) or on_validation(step, scores)"
                )
        self.callbacks = tuple(callbacks)

    def __call__(self, event: Event) -> str:
        """Why one of them wants training to stop; empty where none does."""
        if event["event"] != "record":
            return ""
        record = event["record"]
        validated = record["kind"] == "validation"
        name, found = HOOKS[validated], record["scores"] if validated else {"loss": record["loss"], **record["terms"]}
        told = [_answer(each, name, record["step"], found) for each in self.callbacks if hasattr(each, name)]
        return next(filter(None, told), "")

    def state_dict(self) -> dict[str, Any]:
        """The state of those that have one, by their place."""
        return {str(i): each.state_dict() for i, each in enumerate(self.callbacks) if hasattr(each, "state_dict")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts them back."""
        for i, each in enumerate(self.callbacks):
            if str(i) in state and hasattr(each, "load_state_dict"):
                each.load_state_dict(state[str(i)])


def _answer(callback: Any, hook: str, step: int, found: Mapping[str, Any]) -> str:
    who = f"{type(callback).__name__}.{hook}"
    try:
        said = getattr(callback, hook)(step, dict(found))
    except StopIteration as stop:
        said = str(stop) or True
    if isinstance(said, str) and said:
        return f"{who}: {said}"
    return f"{who} said so" if said is True else ""


class Watchers:
    """All who watch a run; each takes every event, and what one answers to a record may end a training."""

    def __init__(
        self,
        show: Callable[[Event], Any],
        trackers: Sequence[Callable[[Event], Any]] = (),
        callbacks: Sequence[Any] = (),
    ) -> None:
        self.show, self.trackers, self.callbacks = show, tuple(trackers), Callbacks(callbacks)

    def __call__(self, event: Event) -> str:
        """Tells all of them; the first reason to end the training, or empty."""
        self.show(event)
        for each in self.trackers:
            each(event)
        return self.callbacks(event)


class StepWatch(Watch):
    """The watchers of a run, seen from the training of one of its steps."""

    def __init__(self, watchers: Watchers, step: str, seed: int, inside: str = "") -> None:
        self.watchers, self.step, self.seed, self.within = watchers, step, seed, inside

    def __call__(self, record: Mapping[str, Any]) -> str:
        where = {"step": self.step, "seed": self.seed, **({"inside": self.within} if self.within else {})}
        return self.watchers({"event": "record", **where, "record": record})

    def inside(self, name: str) -> StepWatch:
        return StepWatch(self.watchers, self.step, self.seed, f"{self.within}/{name}".lstrip("/"))

    def state_dict(self) -> dict[str, Any]:
        return self.watchers.callbacks.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.watchers.callbacks.load_state_dict(state)
