"""Workers, processes of this machine that answer questions; a dead one is started again and asked again."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import pickle
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from decoct.errors import RecipeError, ResourceError
from decoct.teachers.remote.faults import ended
from decoct.teachers.remote.wire import Got, encoded, receive, send, write
from decoct.teachers.remote.worker import ANSWER, CLOSED, ERROR, FAILED, READY, work

Opened = Callable[[], AbstractContextManager[Callable[[Any], Any]]]
"""What a worker runs: a picklable object that opens what answers."""
DEEP = 2
"""Questions that one worker holds: one at work, one that is there when it is done."""


@dataclass(eq=False)
class _Question:
    number: int
    request: Any
    answer: Future[Any] = field(default_factory=Future)
    deaths: int = 0
    begun: bool = False

    def begin(self) -> bool:
        """False where nobody wants the answer any more."""
        if not self.begun:
            self.begun = self.answer.set_running_or_notify_cancel()
        return self.begun


class Workers:
    """`workers` processes in which `opened()` answers, each with `threads` threads.

    They are spawned, see an end of file when this process ends in whatever way, and leave. A worker that dies is
    started again, and the questions that it had not answered come first. More than `restarts` deaths in a row, of one
    worker or over one question, are a ResourceError for whoever waits. `name` stands in messages.
    """

    def __init__(self, opened: Opened, *, workers: int, threads: int, restarts: int, name: str = "the teacher") -> None:
        refuse_unpicklable(opened, name)
        self.restarted = self.resent = 0
        self._opened, self._threads, self._restarts, self._name = opened, threads, restarts, name
        self._changed = threading.Condition()
        self._waiting: deque[_Question] = deque()
        self._processes: dict[int, SpawnProcess] = {}
        self._closing = self._abandoned = False
        self._broken: Exception | None = None
        self._asked = 0
        self._keepers = [
            threading.Thread(target=self._keep, args=(place,), name=f"decoct-worker-{place}", daemon=True)
            for place in range(workers)
        ]
        atexit.register(self._abandon)
        for each in self._keepers:
            each.start()

    def ask(self, request: Any) -> Future[Any]:
        """Asks; `request` is kept until the answer is there."""
        with self._changed:
            if self._broken is not None:
                raise self._broken
            assert not self._closing, "asked after close"
            question = _Question(self._asked, request)
            self._asked += 1
            self._waiting.append(question)
            self._changed.notify()
        return question.answer

    def pids(self) -> list[int]:
        """The process ids of the workers that live."""
        with self._changed:
            return [each.pid for each in self._processes.values() if each.pid is not None]

    def close(self, *, orderly: bool = True) -> None:
        """Ends all workers. Questions not begun are dropped.

        In order: each finishes what it holds and closes what it opened; raises what that found. Else they are killed.
        """
        with self._changed:
            self._closing, self._abandoned = True, not orderly
            while self._waiting:
                self._waiting.popleft().answer.cancel()
            if not orderly:
                for each in self._processes.values():
                    each.kill()
            self._changed.notify_all()
        try:
            for keeper in self._keepers:
                keeper.join()
        except BaseException:  # an impatient user: leave no process behind
            self.close(orderly=False)
            raise
        atexit.unregister(self._abandon)
        if orderly and self._broken is not None:
            raise self._broken

    def _abandon(self) -> None:
        self.close(orderly=False)

    def _keep(self, place: int) -> None:
        try:
            self._run(place)
        except BaseException as error:  # whoever waits gets it
            self._break(self._lost(error), _Served())

    def _lost(self, error: BaseException) -> ResourceError:
        """What is told to whoever waits when this side fails, not the worker."""
        found = ResourceError(f"{self._name}: {type(error).__name__}: {error}")
        found.__cause__ = error
        return found

    def _run(self, place: int) -> None:
        """Runs one worker from start to end, again and again where it dies."""
        deaths = 0
        while (started := self._start(place)) is not None:
            process, connection = started
            served = _Served()
            try:
                self._serve(connection, served)
            except (EOFError, OSError, pickle.UnpicklingError):
                pass  # it died, or what it says makes no sense: it is started again
            except BaseException as error:  # this side failed; those who wait for what the worker holds get it
                served.over = True
                self._break(self._lost(error), served)
                process.kill()
            finally:
                self._part(place, process, connection, orderly=served.over)
            if self._abandoned:
                return self._break(ResourceError(f"{self._name} was closed"), served)
            if served.over:
                return None
            deaths = 1 if served.answers else deaths + 1
            self._after_death(served, deaths, ended(process.exitcode))
        return None

    def _part(self, place: int, process: SpawnProcess, connection: Connection, *, orderly: bool) -> None:
        """Sees a worker off; one that did not say that it is done is killed."""
        if not orderly:
            process.kill()
        connection.close()
        process.join()
        with self._changed:
            del self._processes[place]

    def _start(self, place: int) -> tuple[SpawnProcess, Connection] | None:
        context = multiprocessing.get_context("spawn")
        with self._changed:
            if self._abandoned or self._broken is not None or (self._closing and not self._waiting):
                return None
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, self._threads), daemon=True, name=self._name)
            process.start()
            theirs.close()
            self._processes[place] = process
        return process, ours

    def _serve(self, connection: Connection, served: _Served) -> None:
        """Asks one living worker until all is over; EOFError or OSError when it dies."""
        connection.send_bytes(pickle.dumps(self._opened))
        kind, value = receive(connection)
        if kind == FAILED:
            served.over = True
            return self._break(value.error(), served)
        assert kind == READY
        served.ready = True
        got = Got()
        while self._fetch(connection, served):
            if not served.held:
                continue
            kind, value = receive(connection, got)
            if kind not in (ANSWER, ERROR):
                raise EOFError(f"the worker said {kind!r} in place of an answer")
            _settle(served.held[0], kind, value)
            served.held.popleft()
            served.answers += 1
        send(connection, None)
        kind, value = receive(connection)
        assert kind == CLOSED
        served.over = True
        return self._break(value.error(), served) if value is not None else None

    def _fetch(self, connection: Connection, served: _Served) -> bool:
        """Hands the worker what it has room for; False when there is nothing left to do."""
        fresh = []
        with self._changed:
            while not self._waiting and not served.held and not self._closing and self._broken is None:
                self._changed.wait()
            while self._waiting and len(served.held) < DEEP:
                question = self._waiting.popleft()
                if question.begin():
                    served.held.append(question)
                    fresh.append(question)
        for question in fresh:
            try:
                message = encoded(question.request)
            except (pickle.PicklingError, AttributeError, TypeError, ValueError) as error:
                served.held.remove(question)
                question.answer.set_exception(RecipeError(f"{self._name}: {error}, so it cannot be sent to a process"))
                continue
            write(connection, *message)
        return bool(served.held) or not (self._closing or self._broken is not None)

    def _after_death(self, served: _Served, deaths: int, how: str) -> None:
        """Puts back what the dead worker held; gives up where that is of no use."""
        message = f"{self._name}'s worker {how}"
        if deaths > self._restarts:
            hint = "is memory short? Give it a smaller batch, or fewer workers"
            if not served.ready:
                hint = (
                    "it died before it was ready: is memory short, and does the script that you run keep its own "
                    "work below `if __name__ == '__main__':`?"
                )
            return self._break(ResourceError(f"{message}, {deaths} times in a row; {hint}"), served)
        with self._changed:
            self.restarted += 1
            if served.held:
                served.held[0].deaths += 1
                if served.held[0].deaths > self._restarts:
                    guilty = served.held.popleft()
                    text = f"{message} {guilty.deaths} times over one batch; give it a smaller batch"
                    guilty.answer.set_exception(ResourceError(text))
            self.resent += len(served.held)
            self._waiting.extendleft(reversed(served.held))
            self._changed.notify_all()
        return None

    def _break(self, error: Exception, served: _Served) -> None:
        """Nothing more will be answered."""
        with self._changed:
            self._broken = self._broken or error
            lost = [*served.held, *self._waiting]
            self._waiting.clear()
            self._changed.notify_all()
        for question in lost:
            if question.begin():
                question.answer.set_exception(error)


@dataclass
class _Served:
    """What one living worker holds and has done."""

    held: deque[_Question] = field(default_factory=deque)
    answers: int = 0
    ready: bool = False
    over: bool = False


def _settle(question: _Question, kind: str, value: Any) -> None:
    with contextlib.suppress(InvalidStateError):
        if kind == ERROR:
            question.answer.set_exception(value.error())
        else:
            question.answer.set_result(value)


def refuse_unpicklable(value: Any, name: str) -> None:
    """RecipeError where `value` cannot be sent to another process."""
    try:
        pickle.Pickler(_Nowhere(), protocol=5).dump(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise RecipeError(
            f"{name} cannot be sent to another process ({error}); define its class at the top of a module, or give an "
            "artifact that a step saved"
        ) from error


class _Nowhere:
    def write(self, data: Any) -> int:
        return len(data) if isinstance(data, bytes) else memoryview(data).nbytes
