"""Ahead, a teacher that can be asked before its answer is needed."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from decoct.outputs import Batch, Outputs, device_of
from decoct.teachers.remote.heads import Moved


@dataclass(frozen=True, eq=False)
class Ticket:
    """Stands for one answer that was asked for; `number` counts the questions of one teacher from 0."""

    number: int
    answer: Future[Outputs]


@dataclass
class Counts:
    """What happened so far.

    Questions `asked`, `answered`, and `dropped` before their answer was taken; `resent` after the death of a worker or
    a failed request; `restarts` of workers; `waited_s`: seconds for which the caller stood still for an answer.
    """

    asked: int = 0
    answered: int = 0
    dropped: int = 0
    resent: int = 0
    restarts: int = 0
    waited_s: float = 0.0


class Ahead(ABC):
    """A Predictor whose answers are made elsewhere and may be asked for ahead.

    `teacher(batch)` takes the answer that the batch holds a ticket for, or asks and waits. A ticket may be redeemed
    any number of times; the answer lives as long as the ticket does. Answers come back on the device of the inputs.
    """

    def __init__(self, side: str, room: int) -> None:
        self.side = side
        self.room = room
        """How many questions may wait for their answers at a time."""
        self.counts = Counts()
        self._moved = Moved()

    @abstractmethod
    def send(self, batch: Batch) -> Future[Outputs]:
        """Asks; returns at once. The answer comes on the CPU, or an exception does."""

    def __call__(self, batch: Batch) -> Outputs:
        """The answer for `batch`: the one that was asked for ahead, or a new one, for which it waits."""
        ticket = batch.tickets.get(self)
        outputs = self.result(self.submit(batch) if ticket is None else ticket)
        return self._moved(outputs, device_of(batch.side(self.side)))

    def submit(self, batch: Batch) -> Ticket:
        """Asks for the answer to `batch` and returns what it is redeemed with."""
        ticket = Ticket(self.counts.asked, self.send(batch))
        self.counts.asked += 1
        return ticket

    def result(self, ticket: Ticket) -> Outputs:
        """The answer, waited for where it is not there yet; raises what went wrong."""
        if not ticket.answer.done():
            start = time.perf_counter()
            try:
                ticket.answer.result()
            finally:
                self.counts.waited_s += time.perf_counter() - start
        return ticket.answer.result()

    def drop(self, ticket: Ticket) -> None:
        """Says that nobody will ask for this answer; it is not made where that is not begun."""
        self.counts.dropped += 1
        ticket.answer.cancel()


class Asking(Ahead):
    """A teacher that is asked by threads of this process, each of which waits for one answer at a time."""

    def __init__(self, side: str, room: int, threads: int) -> None:
        super().__init__(side, room)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decoct-asking")
        self._lock = threading.Lock()

    @abstractmethod
    def ask(self, batch: Batch) -> Outputs:
        """The answer, waited for in one of the threads."""

    def send(self, batch: Batch) -> Future[Outputs]:
        return self._threads.submit(self._asked, replace(batch, tickets={}))

    def end(self) -> None:
        """Ends the threads; what is not begun is dropped."""
        self._threads.shutdown(cancel_futures=True)

    def _asked(self, batch: Batch) -> Outputs:
        outputs = self.ask(batch)
        with self._lock:
            self.counts.answered += 1
        return outputs
