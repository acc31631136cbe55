"""LazyColumn, a column that is made when it is asked for; work on several cores, in order."""

from __future__ import annotations

import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeVar

import numpy as np

Item = TypeVar("Item")
Made = TypeVar("Made")
MOST_THREADS = 16


class LazyColumn(ABC):
    """A column `[N, ...]` of numbers that stand in no memory until samples are asked for."""

    dtype: np.dtype[Any]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """As of an array: the number of samples, and the shape that all of them have."""

    @abstractmethod
    def __getitem__(self, wanted: Any) -> np.ndarray:
        """The numbers of one sample (a whole number), or of several (a slice or indices `[B]`)."""

    @abstractmethod
    def take(self, indices: np.ndarray) -> Self:
        """The column of the samples at `indices`, as lazy as this one."""

    @abstractmethod
    def blocks(self) -> Iterator[np.ndarray]:
        """All samples in their order, `[b, ...]` at a time."""

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self.blocks():
            yield from block

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        made = np.empty(self.shape, self.dtype)
        start = 0
        for block in self.blocks():
            made[start : start + len(block)] = block
            start += len(block)
        return made if dtype is None else made.astype(dtype)


def in_threads(work: Callable[[Item], Made], items: Sequence[Item]) -> Iterator[Made]:
    """What `work` makes of each item, in their order; several at a time where there are cores for it."""
    count = threads()
    if count == 1 or len(items) < 2:
        return map(work, items)
    return _pool(os.getpid(), count).map(work, items)


def threads() -> int:
    """How many threads decode at a time: one for each core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, MOST_THREADS))


@functools.cache
def _pool(process: int, count: int) -> ThreadPoolExecutor:
    """The threads of one process: a child that was forked has none of its parent's."""
    return ThreadPoolExecutor(count, thread_name_prefix="decoct-decode")
