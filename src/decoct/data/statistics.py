"""Statistics of tables of any length, a block of rows in memory at a time; the bits are those of NumPy over all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from decoct.data.mapped import BLOCK, spans

DIGIT = 16
"""Bits of a number that are told apart in one pass over it."""
COLUMNS = 16
"""Columns of which the digits are counted at a time."""


@dataclass(frozen=True)
class Numbers:
    """Of a column: the median of what is not missing (0 where all is), mean and standard deviation with that in its
    place."""

    median: float
    mean: float
    std: float


def numbers_of(matrix: np.ndarray, places: Sequence[int]) -> list[Numbers]:
    """Statistics of the columns at `places` of float64 `[N, F]`, NaN = missing.

    >>> numbers_of(np.array([[1.0], [np.nan], [5.0]]), [0])
    [Numbers(median=3.0, mean=3.0, std=1.632993161855452)]
    """
    medians, rows = np.array(medians_of(matrix, places)), len(matrix)

    def column(part: slice, at: int) -> np.ndarray:
        values = matrix[part, places[at]]
        return np.where(np.isnan(values), medians[at], values)

    means, stds = moments_of(rows, len(places), column)
    return [Numbers(*each) for each in zip(medians.tolist(), means.tolist(), stds.tolist())]


def moments_of(rows: int, width: int, column: Callable[[slice, int], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """float64 `[F]`: mean and standard deviation (divided by N) of each of `width` columns, `(rows, place) -> [b]`.

    >>> moments_of(2, 1, lambda part, at: np.array([1.0, 3.0])[part])
    (array([2.]), array([1.]))
    """
    every = range(width)
    means = summed(rows, lambda part: np.array([column(part, at).sum() for at in every])) / rows
    squares = summed(rows, lambda part: np.array([np.square(column(part, at) - means[at]).sum() for at in every]))
    return means, np.sqrt(squares / rows)


def summed(count: int, part_sum: Callable[[slice], np.ndarray]) -> np.ndarray:
    """The sum over `count` rows from the sums of neighbouring ones, added in the pairs in which NumPy adds."""

    def between(start: int, stop: int) -> np.ndarray:
        size = stop - start
        if size <= BLOCK:
            return part_sum(slice(start, stop))
        half = size // 2
        half -= half % 8
        return between(start, start + half) + between(start + half, stop)

    return between(0, count)


@dataclass
class _Rank:
    """The number at a rank of a column, of which the leading bits are known."""

    left: int
    prefix: int = 0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(1 << DIGIT, np.int64))

    def narrow(self) -> None:
        ends = np.cumsum(self.counts)
        digit = int(np.searchsorted(ends, self.left, side="right"))
        self.left -= int(ends[digit - 1]) if digit else 0
        self.prefix = self.prefix << DIGIT | digit
        self.counts = np.zeros(1 << DIGIT, np.int64)


def medians_of(matrix: np.ndarray, places: Sequence[int]) -> list[float]:
    """The median of each column at `places` of float64 `[N, F]`, without NaN; 0 where nothing is left.

    The bits of the two middle numbers are found from the first to the last by counting, in passes over all rows.
    """
    if len(matrix) <= BLOCK:
        every = (values[~np.isnan(values)] for values in (matrix[:, at] for at in places))
        return [float(np.median(values)) if len(values) else 0.0 for values in every]
    if len(places) > COLUMNS:
        groups = (places[start : start + COLUMNS] for start in range(0, len(places), COLUMNS))
        return [each for group in groups for each in medians_of(matrix, group)]
    known = np.zeros(len(places), np.int64)
    for part in spans(len(matrix)):
        known += (~np.isnan(matrix[part][:, places])).sum(0)
    ranks = [(_Rank((count - 1) // 2), _Rank(count // 2)) if count else () for count in known.tolist()]
    for shift in range(64 - DIGIT, -1, -DIGIT):
        for part in spans(len(matrix)):
            block = matrix[part]
            for at, pair in zip(places, ranks):
                if pair:
                    _count(_ordered(block[:, at]), pair, shift)
        for pair in ranks:
            for each in pair:
                each.narrow()
    return [_middle(*(_number(each.prefix) for each in pair)) for pair in ranks]


def _middle(low: float = 0.0, high: float = 0.0) -> float:
    return low if low == high else (low + high) / 2


def _count(numbers: np.ndarray, pair: Sequence[_Rank], shift: int) -> None:
    """Counts the next digit of the numbers that begin as each rank's does."""
    for each in pair:
        if each is not pair[0] and each.prefix == pair[0].prefix:
            each.counts = pair[0].counts
            continue
        own = numbers
        if shift + DIGIT < 64:
            own = numbers[numbers >> np.uint64(shift + DIGIT) == np.uint64(each.prefix)]
        digits = (own >> np.uint64(shift)) & np.uint64((1 << DIGIT) - 1)
        each.counts += np.bincount(digits.astype(np.int64), minlength=1 << DIGIT)


_SIGN = np.uint64(1 << 63)


def _ordered(values: np.ndarray) -> np.ndarray:
    """uint64 in the order of float64 values; NaN is left out."""
    kept = values[~np.isnan(values)] + 0.0
    bits = kept.view(np.uint64)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _number(ordered: int) -> float:
    bits = np.uint64(ordered)
    return float((bits ^ _SIGN if bits & _SIGN else ~bits).view(np.float64))
