"""Sources: batches in an order that hangs on seed, epoch and content alone, from any position."""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from decoct.data.base import Source, Split
from decoct.data.hashing import keyed
from decoct.data.ordering import argsorted, counted
from decoct.data.views import Views
from decoct.errors import DataError, RecipeError

if TYPE_CHECKING:
    from decoct.outputs import Batch

Collate = Callable[..., "Batch"]
"""`task.collate`: (split, indices, *, seeds, view) -> Batch."""


class Batches(Source):
    """Batches of one split.

    The order of epoch e sorts the samples by H(seed, e, key, occurrence); the view of a sample in it is seeded by
    H(seed, e, key), so neither depends on positions, workers or batch mates. `only="labelled"` leaves out unlabelled
    samples. `views`: each sample comes in one of so many fixed views, in place of a new one each epoch. `prefetch`
    batches are collated ahead by a thread; results and positions stay the same.
    """

    def __init__(
        self,
        split: Split,
        collate: Collate,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        augment: bool = False,
        drop_last: bool = False,
        only: Literal["all", "labelled"] = "all",
        prefetch: int = 0,
        views: Views | None = None,
    ) -> None:
        if batch_size < 1:
            raise RecipeError(f"batch_size: {batch_size}; give 1 or more")
        chosen = None if only == "all" or split.labelled is None else np.flatnonzero(split.labelled)
        count = len(split) if chosen is None else len(chosen)
        if count == 0 or (drop_last and count < batch_size):
            raise DataError(f"no batch of {batch_size} can be drawn from {count} samples ({only} of {len(split)})")
        self._split, self._collate, self._chosen, self._count = split, collate, chosen, count
        self._batch_size, self._seed = batch_size, seed
        self._shuffle, self._augment, self._prefetch, self._views = shuffle, augment, prefetch, views
        self._occurrence = self._own(counted(split.keys, split.columns)) if shuffle else None
        whole, rest = divmod(count, batch_size)
        self._length = whole + (rest > 0 and not drop_last)
        self._epoch = self._batch = 0

    @property
    def length(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = self._epoch, self._batch
        made = self._epoch_batches(epoch, first)
        with closing(_ahead(made, self._prefetch) if self._prefetch else made) as batches:
            for number, batch in enumerate(batches, start=first + 1):
                self._epoch, self._batch = (epoch, number) if number < self._length else (epoch + 1, 0)
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        if not 0 <= state["batch"] < self._length:
            raise DataError(
                f"position: batch {state['batch']} of an epoch of {self._length}; were data or batch_size changed?"
            )
        self._epoch, self._batch = state["epoch"], state["batch"]

    @property
    def collate(self) -> Collate:
        """What makes a batch of chosen samples."""
        return self._collate

    def collated_by(self, collate: Collate) -> Batches:
        """The same order from the same position, with another collate."""
        other = copy.copy(self)
        other._collate = collate
        return other

    def order(self, epoch: int) -> np.ndarray:
        """Indices of the samples in the order of an epoch."""
        if self._occurrence is None:
            return np.arange(self._count) if self._chosen is None else self._chosen
        keys, occurrence = self._own(self._split.keys), self._occurrence
        ranks = argsorted(lambda part: keyed(self._seed, "order", epoch, keys[part], occurrence[part]), self._count)
        return ranks if self._chosen is None else self._chosen[ranks]

    def _own(self, values: np.ndarray) -> np.ndarray:
        return values if self._chosen is None else values[self._chosen]

    def _epoch_batches(self, epoch: int, first: int) -> Generator[Batch]:
        order = self.order(epoch)
        for number in range(first, self._length):
            indices = order[number * self._batch_size : (number + 1) * self._batch_size]
            keys = self._split.keys[indices]
            if self._views is None:
                seeds = keyed(self._seed, "view", epoch, keys) if self._augment else None
                yield self._collate(self._split, indices, seeds=seeds, view=epoch)
            else:
                numbers = self._views.numbers(epoch, keys)
                seeds = self._views.seeds(numbers, keys) if self._augment else None
                yield self._collate(self._split, indices, seeds=seeds, view=numbers)


HELD_OUT = "held_out"
"""The name of the samples beside each batch on which meta-learning takes its gradient."""


class Together(Source):
    """Each batch of `main` with the next one of each of `others` beside it, in `also` under its name.

    An epoch is one of `main`; every other source has its own length and starts over at its end.
    """

    def __init__(self, main: Source, others: Mapping[str, Source]) -> None:
        self.main, self.others = main, dict(others)
        self.fixed = all(each.fixed for each in (main, *self.others.values()))

    @property
    def length(self) -> int | None:
        return self.main.length

    def __iter__(self) -> Iterator[Batch]:
        beside = {name: _endless(name, each) for name, each in self.others.items()}
        for batch in self.main:
            yield replace(batch, also={**batch.also, **{name: next(each) for name, each in beside.items()}})

    def state_dict(self) -> dict[str, Any]:
        return {
            "main": self.main.state_dict(),
            "others": {name: each.state_dict() for name, each in self.others.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state["others"]) != set(self.others):
            raise DataError(
                f"position: it is one of the sources {', '.join(state['others'])} beside the main one, and there are "
                f"{', '.join(self.others)}; were sources changed?"
            )
        self.main.load_state_dict(state["main"])
        for name, each in self.others.items():
            each.load_state_dict(state["others"][name])


def _endless(name: str, source: Source) -> Iterator[Batch]:
    empty = 0
    while empty < 2:  # the first may be the end of an epoch that had given all before
        empty += 1
        for batch in source:
            empty = 0
            yield batch
    raise DataError(f"source {name!r} gives no batch; is it a generator, used up?")


def ordered(split: Split, collate: Collate, batch_size: int) -> Iterator[Batch]:
    """All samples of a split in their own order, unaugmented: for evaluation."""
    for start in range(0, len(split), batch_size):
        yield collate(split, np.arange(start, min(start + batch_size, len(split))))


def _ahead(batches: Iterator[Batch], count: int) -> Generator[Batch]:
    """The same batches, up to `count` of them made ahead by a thread; the thread ends with this iterator."""
    made: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=count)
    stop = threading.Event()

    def put(item: tuple[str, Any]) -> None:
        while not stop.is_set():
            try:
                return made.put(item, timeout=0.1)
            except queue.Full:
                continue
        return None

    def work() -> None:
        try:
            for batch in batches:
                put(("batch", batch))
                if stop.is_set():
                    return
            put(("end", None))
        except BaseException as error:  # handed to the consumer, which raises it
            put(("error", error))

    thread = threading.Thread(target=work, name="decoct-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = made.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stop.set()
        thread.join()
