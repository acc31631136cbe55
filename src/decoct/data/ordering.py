"""Orders of many samples: what sorting all of them at once would give, a part of them in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from decoct.data.hashing import occurrences
from decoct.data.mapped import BLOCK, room, spans

Hashes = Callable[[slice], np.ndarray]
"""Rows -> uint64 `[b]`, spread evenly over all numbers."""


def argsorted(hashes: Hashes, count: int) -> np.ndarray:
    """int64 `[count]`: what `np.argsort(all hashes, kind="stable")` gives.

    >>> found = np.array([3, 1, 1 << 63, 1], np.uint64)
    >>> argsorted(lambda part: found[part], 4).tolist()
    [1, 3, 0, 2]
    """
    if count <= BLOCK:
        return np.argsort(hashes(slice(0, count)), kind="stable")
    order = room(count, np.int64)
    for start, numbers, places in _buckets(hashes, count):
        order[start : start + len(places)] = places[np.argsort(numbers, kind="stable")]
    return order


def counted(keys: np.ndarray, columns: Mapping[str, Any]) -> np.ndarray:
    """int64 `[N]`: `occurrences` of the keys, by target and then by position.

    >>> counted(np.array([7, 5, 7, 7], np.uint64), {}).tolist()
    [0, 0, 1, 2]
    """
    if len(keys) <= BLOCK:
        return occurrences(keys, columns)
    found = room(len(keys), np.int64)
    targets = {name: np.asarray(columns[name]) for name in ("label", "value") if name in columns}
    for _, numbers, places in _buckets(lambda part: keys[part], len(keys)):
        found[places] = occurrences(numbers, {name: each[places] for name, each in targets.items()})
    return found


def _buckets(hashes: Hashes, count: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Buckets of neighbouring hashes, ascending: where each starts, its hashes, and their rows, ascending."""
    bits = max(1, (count // BLOCK).bit_length())
    shift, sizes = np.uint64(64 - bits), np.zeros(1 << bits, np.int64)
    for part in spans(count):
        sizes += np.bincount((hashes(part) >> shift).astype(np.int64), minlength=len(sizes))
    starts = np.cumsum(sizes) - sizes
    numbers, rows, filled = room(count, np.uint64), room(count, np.int64), starts.copy()
    for part in spans(count):
        own = hashes(part)
        bucket = (own >> shift).astype(np.int64)
        order = np.argsort(bucket, kind="stable")
        here = np.bincount(bucket, minlength=len(sizes))
        rank = np.arange(len(own)) - np.repeat(np.cumsum(here) - here, here)
        places = filled[bucket[order]] + rank
        numbers[places], rows[places] = own[order], order + part.start
        filled += here
    for start, size in zip(starts.tolist(), sizes.tolist()):
        yield start, np.array(numbers[start : start + size]), np.array(rows[start : start + size])
