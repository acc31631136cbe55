"""Jobs done by several workers, on this machine or on a Ray cluster: labelling a corpus, shard by shard."""

from __future__ import annotations

import functools
import itertools
import queue
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from decoct.teachers.remote.workers import Workers
from decoct.threads import in_threads

T = TypeVar("T")
AHEAD = 3
"""Jobs that each other worker is asked for ahead, while this process may be at one for a while."""


def run_jobs(
    jobs: Iterable[T],
    factory: Callable[[], Callable[[T], bytes]],
    *,
    workers: int,
    threads: int,
    restarts: int = 3,
    here: bool = False,
) -> Iterator[tuple[int, bytes]]:
    """(number of the job, its result), as they are done, by `workers` processes of `threads` threads each.

    `factory` is sent to each process and makes there what does a job (where that is a context manager, it is entered,
    and left when no job is left); both are picklable. `here`: this process is one of them, and does what is there while
    the others start. A worker that dies is started again and its job repeated; each result comes once. Some jobs more
    than there are workers are drawn ahead. The first error of a job ends all: its class where it is one of decoct's,
    else RuntimeError; more than `restarts` deaths in a row are a ResourceError. No process is left, also when the
    caller stops early.
    """
    others = workers - here
    pool = Workers(_Made(factory), workers=others, threads=threads, restarts=restarts, name="labelling")
    orderly = False
    queued = _Queued(jobs, pool)
    try:
        queued.ask((AHEAD if here else 2) * others)
        if here:
            yield from _done_here(queued, _Made(factory), threads)
        while queued.asked:
            yield from queued.done(wait=True)
        orderly = True
    finally:
        pool.close(orderly=orderly)


def _done_here(queued: _Queued[T], made: _Made[T], threads: int) -> Iterator[tuple[int, bytes]]:
    """Does jobs in this process, until none is left that no other has begun; what others have done comes between."""
    with in_threads(threads), made() as work:
        while (taken := queued.take()) is not None:
            number, job = taken
            yield number, work(job)
            yield from queued.done(wait=False)


class _Queued(Generic[T]):
    """Jobs of which some are asked of others; `asked` by number."""

    def __init__(self, jobs: Iterable[T], pool: Workers) -> None:
        self._waiting, self._pool = iter(enumerate(jobs)), pool
        self._done: queue.SimpleQueue[tuple[int, Future[bytes]]] = queue.SimpleQueue()
        self.asked: dict[int, tuple[T, Future[bytes]]] = {}

    def ask(self, most: int) -> None:
        """Asks others for the next jobs."""
        for number, job in itertools.islice(self._waiting, most):
            self.asked[number] = job, self._pool.ask(job)
            self.asked[number][1].add_done_callback(functools.partial(_put, self._done, number))

    def take(self) -> tuple[int, T] | None:
        """The next job, or the last that was asked of others and that none has begun."""
        following = next(self._waiting, None)
        if following is not None:
            return following
        for number in reversed(self.asked):
            job, future = self.asked[number]
            if future.cancel():
                del self.asked[number]
                return number, job
        return None

    def done(self, *, wait: bool) -> Iterator[tuple[int, bytes]]:
        """What others have done by now, of which there is something where this waits."""
        while True:
            try:
                number, future = self._done.get(block=wait)
            except queue.Empty:
                return
            if future.cancelled():
                continue
            result = future.result()
            del self.asked[number]
            self.ask(1)
            yield number, result
            wait = False


def _put(done: queue.SimpleQueue[tuple[int, Future[bytes]]], number: int, future: Future[bytes]) -> None:
    done.put((number, future))


@dataclass(frozen=True)
class _Made(Generic[T]):
    factory: Callable[[], Callable[[T], bytes]]

    @contextmanager
    def __call__(self) -> Iterator[Callable[[Any], bytes]]:
        made = self.factory()
        with made if isinstance(made, AbstractContextManager) else nullcontext():
            yield made
