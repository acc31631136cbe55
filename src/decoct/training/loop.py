"""Run, the loop of `fit`: windows, epochs, validation, log, checkpoints, going back."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from decoct.data.base import Source
from decoct.data.parts import Padding
from decoct.errors import DataError, Diverged, ForwardFailed, RecipeError, did_you_mean
from decoct.outputs import Batch
from decoct.training.base import History, ManagedUpdate, Options, Update
from decoct.training.budget import Budget
from decoct.training.callback import WithCallback
from decoct.training.checkpoint import Checkpoints
from decoct.training.clock import Clock
from decoct.training.early import Early
from decoct.training.guards import NonFinite, Origin
from decoct.training.leaving_out import Soundness
from decoct.training.log import Log, Means, last_told
from decoct.training.packing import pack, unpack
from decoct.training.position import Agreed, Position, RolledBack, agree
from decoct.training.processes import refuse_unequal, same_start
from decoct.training.signals import Interrupted, Signals, catching
from decoct.training.state import Best, EachRandomness, State

MOST_VALIDATIONS = 20
"""A run is validated at the ends of its epochs, and about this often at most."""


class Run:
    """One call of `fit`."""

    def __init__(
        self,
        update: Update,
        source: Source,
        state: State,
        budget: Budget,
        work: Path | None,
        validate: Callable[[], dict[str, float]] | None,
        options: Options,
    ) -> None:
        self.update, self.source, self.budget = update, source, budget
        self.validate, self.options = validate, options
        self.processes = options.processes
        self.position, self.means, self.random = Position(), Means(), EachRandomness(options.processes)
        self.best = Best(*options.select) if options.select is not None else None
        self.student = state["student"] if self.best is not None else None
        self.modules = state.modules()
        self.state = self._whole(state)
        self.checkpoints = None if work is None else Checkpoints(work)
        self.log = Log(None if work is None or not self.processes.first else work / "log.jsonl")
        self.total = budget.steps_for(source.length, accumulate=options.accumulate)
        self.iterator: Iterator[Batch] | None = None
        self.memory: Any = None
        self.changed = False
        self.signals, self.agreed = Signals(), Agreed()
        self.soundness = Soundness(self)
        self.early = Early(options, self.random)
        self.begun = self.saved = self.told = time.monotonic()

    def _whole(self, state: State) -> State:
        parts = {**state, "source": self.source, "random": self.random, "fit": self}
        if self.best is not None:
            parts["best"] = self.best
        if self.options.stop is not None:
            parts["stopping"] = self.options.stop
        if isinstance(self.update, ManagedUpdate):
            parts["update"] = self.update
        twice = [name for name in state if parts[name] is not state[name]]
        if twice:
            raise RecipeError(f"state {', '.join(twice)}: fit keeps a part of this name itself; call yours another")
        return State(**parts)

    # The position of this loop is a part of the state like any other.

    def state_dict(self) -> dict[str, Any]:
        """Position, the numbers not yet logged and the length of the log."""
        self._tick()
        own = {"position": asdict(self.position), "means": self.means.state_dict(), "log": self.log.position()}
        return {**own, **self.early.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back; the log is cut."""
        self.position = Position(**state["position"])
        self.means.load_state_dict(state["means"])
        self.log.cut(state["log"])
        self.early.load_state_dict(state)
        self.iterator = None
        self.begun = time.monotonic()

    # The loop.

    def run(self) -> History:
        resumed = self._begin()
        with catching(self.checkpoints is not None) as self.signals:
            while True:
                try:
                    self._leave_if_asked()
                    if self.position.pending:
                        self._validate()
                    if self._finished() and not self._last_things_to_do():
                        break
                    if not self._finished():
                        self._advance()
                except RolledBack as back:
                    self._roll_back(back.origin)
        self._agree(time.monotonic())
        if self.agreed.asked is not None:
            raise self.signals.interrupted(self._where())
        return self._end(resumed)

    def _begin(self) -> int | None:
        for module in self.modules:
            if not module.training:
                module.train()
        if self.processes.several:
            refuse_unequal("the number of batches in an epoch", self.source.length, self.processes)
            same_start(self.modules, self.processes)
            self.random.spread()
        if self.checkpoints is None:
            self._open_log()
            return None
        if self.processes.first:
            self.checkpoints.tidy()
        resumed = self._load()
        if resumed is None:
            self.log.cut({"records": 0, "bytes": 0})
            self._open_log()
        return resumed

    def _open_log(self) -> None:
        for note in self.options.notes:
            self.log.write(note)
        self._save()

    def _load(self) -> int | None:
        assert self.checkpoints is not None
        step = self.processes.shared(self._newest)
        if step is not None:
            self.state.load_state_dict(self.checkpoints.read(step))
        return step

    def _newest(self) -> int | None:
        """The step of the newest whole checkpoint whose log is there."""
        assert self.checkpoints is not None
        while (found := self.checkpoints.load()) is not None:
            step, state = found
            if self.log.reaches(state["fit"]["log"]):
                return step
            folder = self.checkpoints.work / f"checkpoint-{step}"
            self.checkpoints.drop(folder, "log.jsonl is shorter than when it was written")
        return None

    def _end(self, resumed: int | None) -> History:
        self._tell()
        best = self.best
        if best is not None and best.step is not None and self.student is not None:
            self.student.load_state_dict(best.weights)
        elif best is not None:
            warnings.warn(f"no validation gave a number for {best.name}: the last weights stay", stacklevel=4)
        found = (best.scores, best.step) if best is not None else ({}, None)
        position = self.position
        return History(self.log.records, position.step, *found, resumed, dict(position.left_out), position.stopped)

    def _last_things_to_do(self) -> bool:
        """What is left when the budget is used up: a callback's end, validation, the last record and checkpoint."""
        position = self.position
        if position.step and isinstance(self.update, WithCallback) and self.update.finish():
            position.validated, self.changed = -1, True
        if self.validate is not None and position.validated != position.step:
            position.pending = True
            return True
        if len(self.means):
            self._record()
        if self.changed:
            self._save()
        return False

    def _advance(self) -> None:
        """Steps until the epoch ends or something else is due."""
        position, options = self.position, self.options
        if self.iterator is None:
            self.iterator = iter(self.source)
        expected = self.source.length
        every = options.validate_every or self.budget.validation_steps(expected, accumulate=options.accumulate)
        while True:
            window = list(islice(self.iterator, options.accumulate))
            if expected is None:
                refuse_unequal("the number of batches of a window", len(window), self.processes)
            if window:
                self._window(window)
            if len(window) < options.accumulate or position.batch == expected:
                return self._end_epoch(expected)
            if self._due_inside(every):
                position.pending = True
                return None
            now = time.monotonic()
            if now - self.told > 0.1:
                self._tell()
            self._agree(now)
            if self.agreed.save:
                self._save()
            if self.agreed.asked is not None or self._finished():
                return None

    def _agree(self, now: float) -> None:
        """What clocks and signals say; see `agree`."""
        due = now - self.saved >= self.options.checkpoint_seconds
        if self.processes.several:
            self._tick()
        self.agreed = agree(self.processes, self.signals.asked, due, self.position.seconds)
        self.signals.asked = self.agreed.asked

    def _window(self, window: list[Batch]) -> None:
        position = self.position
        self.changed = True
        noted = position.skipped() if position.skips else None
        origin = (position.epoch, position.batch, [batch.keys for batch in window])
        kept = self.soundness.kept(window, noted)
        if kept:
            now = position.clock = (position.step, position.epoch, self._progress())
            try:
                values = self.update(kept, Clock(*now))
            except NonFinite:
                raise RolledBack(Origin.of(origin)) from None
            except ForwardFailed as error:
                raise error.at(f"step {now[0] + 1}, batch {origin[1]} of epoch {origin[0]}") from error.__cause__
            self.means.add(values, origin)
            position.step += 1
        position.batch += len(window)
        position.windows += 1
        if self.budget.samples is not None:
            own = sum(len(batch) for batch in window if not isinstance(batch, Padding))
            position.samples += round(self.processes.added([own])[0])
        if kept and position.step % self.options.log_every == 0:
            self._record()

    def _end_epoch(self, expected: int | None) -> None:
        assert self.iterator is not None
        if expected is not None and next(self.iterator, None) is not None:
            raise DataError(f"the source says that an epoch has {expected} batches and gives more")
        self.iterator = None
        if self.position.batch == 0:
            outputs = f"says that an epoch has {expected} batches" if expected is not None else "has no length"
            raise DataError(f"the source {outputs} and gives none")
        self.position.epoch, self.position.batch = self.position.epoch + 1, 0
        if self.validate is not None and self._due():
            self.position.pending = True

    def _due(self) -> bool:
        """Whether an epoch's end asks for a validation: a twentieth of the run after the last one, at least."""
        position = self.position
        if self.source.length is None and position.validated == position.step:
            return False
        done, total = self._done()
        return self.options.validate_every is not None or done - position.validated_at >= total / MOST_VALIDATIONS

    def _due_inside(self, every: int | None) -> bool:
        """Whether a step inside an epoch asks for a validation: each `every`, or a fifth of the run in a stream."""
        position = self.position
        if position.validated == position.step or self.validate is None:
            return False
        if every or self.source.length is not None:
            return every is not None and position.step % every == 0
        done, total = self._done()
        return done - position.validated_at >= total / 5

    def _validate(self) -> None:
        assert self.validate is not None
        self._settle()
        if self._finished() and len(self.means):
            self._record()
        try:
            with self._aside():
                scores = {name: float(score) for name, score in self.validate().items()}
        except ForwardFailed as error:
            raise error.at(f"validation after step {self.position.step}") from error.__cause__
        except Interrupted as interrupt:
            self.signals.asked = interrupt.signal
            self._save()
            raise self.signals.interrupted(self._where()) from None
        position = self.position
        position.pending, position.validated, self.changed = False, position.step, True
        position.validated_at = self._done()[0]
        self._tick()
        record = {"kind": "validation", "step": position.step, "epoch": position.epoch, "scores": scores}
        self.log.write({**record, "time": position.seconds})
        why = self.early.told(self.log)
        if self.best is not None and self.student is not None:
            if self.best.name not in scores:
                hint = did_you_mean(self.best.name, scores)
                raise RecipeError(f"select: validation gives no score {self.best.name!r}; {hint}")
            self.best.offer(self.student, scores, position.step)
        self._stop(why or self.early.enough(scores, position))
        self._save()

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Eval mode and no gradients; modes and random state as before afterwards; a signal leaves at once."""
        with self.undisturbed():
            try:
                self.signals.at_once = not self.processes.several
                if self.signals.at_once and self.signals.asked is not None:
                    raise self.signals.interrupted(self._where())
                yield
            finally:
                self.signals.at_once = False

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Eval mode and no gradients; modes and random state as before afterwards."""
        modes = [(module, module.training) for part in self.modules for module in part.modules()]
        randomness = self.random.own.state_dict()
        try:
            for part in self.modules:
                part.eval()
            with torch.no_grad():
                yield
        finally:
            for module, training in modes:
                module.training = training
            self.random.own.load_state_dict(randomness)

    # Log and checkpoints.

    def _settle(self) -> None:
        bad = self.means.settle()
        if bad is not None and self.options.guard is not None:
            raise RolledBack(bad)

    def _record(self) -> None:
        self._settle()
        self._tick()
        settings: dict[str, Any] = {"weights": {}, "lr": None}
        if isinstance(self.update, ManagedUpdate):
            settings = self.update.settings(Clock(*self.position.clock))
        terms = self.means.take()
        loss = terms.pop("loss", None)
        where = {"kind": "train", "step": self.position.step, "epoch": self.position.epoch}
        self.log.write({**where, "loss": loss, "terms": terms, **settings, "time": self.position.seconds})
        self._stop(self.early.told(self.log))
        spikes, self.means.spikes = self.means.spikes, []
        self.soundness.say_spikes(spikes)

    def _save(self) -> None:
        self._settle()
        if self.checkpoints is not None:
            state = self.state.state_dict()
            if self.processes.first:
                self.checkpoints.save(self.position.step, state)
        elif self.options.guard is not None:
            self.memory = pack(self.state.state_dict(), copy=True)
        self.changed = False
        self.saved = time.monotonic()

    def _stop(self, why: str) -> None:
        position = self.position
        if why and not self._finished():
            position.stopped = why
            self.log.write({"kind": "stop", "step": position.step, "epoch": position.epoch, "why": why})

    def _leave_if_asked(self) -> None:
        self._agree(time.monotonic())
        if self.agreed.asked is not None:
            self._save()
            raise self.signals.interrupted(self._where())

    def _where(self) -> str:
        return f"at step {self.position.step}, which is saved; the same command continues from there"

    # Numbers that are not finite.

    def _roll_back(self, origin: Origin) -> None:
        """Goes back to the last checkpoint; when the batch comes again, it is looked into."""
        self.means.settle()
        at, before = self.position.step, self.position
        last = self.means.last_finite
        self._restore()
        self.position.skips, self.position.left_out, self.position.large = before.skips, before.left_out, before.large
        self.soundness.note(origin, last)
        warnings.warn(
            f"about step {at}: loss or gradient is not finite in batch {origin.batch} of epoch {origin.epoch}; "
            f"going back to step {self.position.step} to see why",
            stacklevel=5,
        )

    def _restore(self) -> None:
        self.iterator = None
        if self.checkpoints is None:
            data, tensors = self.memory
            self.state.load_state_dict(unpack(data, {name: each.clone() for name, each in tensors.items()}))
        elif self._load() is None:
            raise Diverged("loss or gradient is not finite and there is no whole checkpoint to go back to; start anew")
        self.changed = True

    def _progress(self) -> float:
        done, total = self._done()
        return min(1.0, done / total) if total else 1.0

    def _done(self) -> tuple[float, float]:
        if self.budget.steps is not None:
            return self.position.step, self.budget.steps
        if self.total is not None and self.budget.epochs is not None:
            return self.position.windows, self.total
        if self.budget.samples is not None:
            return self.position.samples, self.budget.samples
        assert self.budget.seconds is not None
        if self.processes.several:
            return self.agreed.seconds, self.budget.seconds
        self._tick()
        return self.position.seconds, self.budget.seconds

    def _finished(self) -> bool:
        if self.position.stopped:
            return True
        done, total = self._done()
        return done >= total

    def _tick(self) -> None:
        now = time.monotonic()
        self.position.seconds += now - self.begun
        self.begun = now

    def _tell(self) -> None:
        self.told = time.monotonic()
        if self.options.progress is not None:
            text = f"step {self.position.step}, epoch {self.position.epoch}{last_told(self.log, self.options.metric)}"
            self.options.progress(*self._done(), text)
