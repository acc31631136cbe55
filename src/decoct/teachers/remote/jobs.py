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

T = TypeVar("T")


def run_jobs(
    jobs: Iterable[T], factory: Callable[[], Callable[[T], bytes]], *, workers: int, threads: int, restarts: int = 3
) -> Iterator[tuple[int, bytes]]:
    """(number of the job, its result), as they are done, by `workers` processes of `threads` threads each.

    `factory` is sent to each process and makes there what does a job (where that is a context manager, it is entered,
    and left when no job is left); both are picklable. A worker that dies is started
    again and its job repeated; each result comes once. Twice as many jobs as workers are drawn ahead. The first error
    of a job ends all: its class where it is one of decoct's, else RuntimeError; more than `restarts` deaths in a row
    are a ResourceError. No process is left, also when the caller stops early.
    """
    pool = Workers(_Made(factory), workers=workers, threads=threads, restarts=restarts, name="labelling")
    orderly = False
    done: queue.SimpleQueue[tuple[int, Future[bytes]]] = queue.SimpleQueue()
    waiting = iter(enumerate(jobs))
    in_flight = 0

    def ask(most: int) -> int:
        """Asks for the next jobs; how many there were."""
        some = list(itertools.islice(waiting, most))
        for number, job in some:
            pool.ask(job).add_done_callback(functools.partial(_put, done, number))
        return len(some)

    try:
        in_flight = ask(2 * workers)
        while in_flight:
            number, future = done.get()
            result = future.result()
            in_flight += ask(1) - 1
            yield number, result
        orderly = True
    finally:
        pool.close(orderly=orderly)


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
