"""Parts: of each batch the samples that are one process's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from decoct.data.base import Source
from decoct.data.given import LoaderSource, content
from decoct.data.rollouts import Rollouts
from decoct.data.sources import Batches, Together
from decoct.outputs import Batch

Same = Callable[[str], None]
"""Refuses a text that is not the same in all processes."""


@dataclass(frozen=True)
class Padding(Batch):
    """A sample that stands in where a batch has none for a process: it may be run, and counts for nothing."""


def bounds(samples: int, rank: int, count: int) -> tuple[int, int]:
    """The samples of process `rank` of `count`: contiguous parts, sizes differ by at most 1, the larger first.

    >>> [bounds(5, rank, 3) for rank in range(3)]
    [(0, 2), (2, 4), (4, 5)]
    """
    size, more = divmod(samples, count)
    start = rank * size + min(rank, more)
    return start, start + size + (rank < more)


def part(batch: Batch, start: int, stop: int) -> Batch:
    """The samples from `start` to `stop` of a batch, in all its fields; `also`, which has samples of its own, stays.

    A mapping or tuple of inputs bundles several, each of which is cut; one object shared by two sides stays shared.
    Answers that were asked for ahead are those of the whole batch and are left out. DataError where something has
    another number of samples.
    """
    return batch.take(slice(start, stop))


def own_part(batch: Batch, rank: int, count: int) -> Batch:
    """What process `rank` of `count` gets of a batch and of those beside it; a Padding where nothing is left."""
    start, stop = bounds(len(batch), rank, count)
    found = part(batch, start, stop) if start < stop else padding(part(batch, 0, 1))
    also = {name: own_part(each, rank, count) for name, each in batch.also.items()}
    return replace(found, also=also) if also else found


def padding(batch: Batch) -> Padding:
    """The same as a Padding."""
    return Padding(**{each.name: getattr(batch, each.name) for each in fields(Batch)})


class Parts(Source):
    """Of each batch of a source the part of process `rank` of `count`; order and positions are the source's.

    `same` hears the hash of the first whole batch of each epoch of a loader: it must be one in all processes.
    """

    def __init__(self, source: Source, rank: int, count: int, same: Same | None = None) -> None:
        self.source, self.rank, self.count, self.same = source, rank, count, same
        self.fixed = source.fixed

    @property
    def length(self) -> int | None:
        return self.source.length

    def __iter__(self) -> Iterator[Batch]:
        asked = self.same if isinstance(self.source, LoaderSource) and self.source.fresh else None
        for batch in self.source:
            if asked is not None:
                asked(content(batch))
                asked = None
            yield own_part(batch, self.rank, self.count)

    def state_dict(self) -> Mapping[str, Any]:
        return self.source.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.source.load_state_dict(state)


def dealt(collate: Callable[..., Batch], rank: int, count: int) -> Callable[..., Batch]:
    """A collate that makes the part of one process alone; (split, indices, *, seeds, view) as `task.collate`."""

    def collated(split: Any, indices: np.ndarray, *, seeds: np.ndarray | None = None, view: Any = 0) -> Batch:
        start, stop = bounds(len(indices), rank, count)
        chosen = slice(start, stop) if start < stop else slice(0, 1)
        own_view = view[chosen] if isinstance(view, np.ndarray) and view.ndim else view
        own_seeds = None if seeds is None else seeds[chosen]
        batch = collate(split, indices[chosen], seeds=own_seeds, view=own_view)
        return batch if start < stop else padding(batch)

    return collated


def parts(source: Source, rank: int, count: int, same: Same | None = None) -> Source:
    """Of each batch of a source the part of process `rank` of `count`, made without the others where that can be.

    `same` is as of Parts: without it nothing finds out that a loader gives other batches in each process.

    A loader that hands out other samples to each process by itself (a DistributedSampler, one that accelerate has
    prepared) is left as it is: each of its batches is this process's part already.
    """
    if count == 1:
        return source
    if isinstance(source, LoaderSource) and source.divided:
        source.refuse_other_division(rank, count)
        return source
    if isinstance(source, Batches):
        return source.collated_by(dealt(source.collate, rank, count))
    if isinstance(source, Together):
        return Together(
            parts(source.main, rank, count, same),
            {name: parts(each, rank, count, same) for name, each in source.others.items()},
        )
    if isinstance(source, Rollouts):
        return source.over(parts(source.prompts, rank, count, same))
    return Parts(source, rank, count, same)
