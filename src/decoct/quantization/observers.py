"""Observers: which range of a tensor 8 bits stand for, from a histogram of its values that grows batch by batch.

The histogram's edges are whole multiples of its bin width, and the width only ever doubles, so that merging two bins
into one is exact: the histogram of all batches is the same as of their concatenation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

ObserverName = Literal["min_max", "percentile", "entropy", "mse"]
BINS = 8192
"""At most so many bins."""
ENTROPY_BINS = 2048
VALUES_A_BIN = 16
"""So many on average, so that a histogram shows the distribution and not chance."""
CUT_OFF = 0.001
"""At most this share of values is cut off at one end: a value that many have, such as white, is no outlier."""
CUTS = 512
"""At most so many thresholds are tried."""
LEVELS = 256
SEARCH = np.linspace(0.02, 1.0, 99)
"""Fractions of a range that the search for the least squared error tries."""


@dataclass(frozen=True)
class Affine:
    """An 8-bit code: value = scale * (code - zero_point), code in [low, high].

    >>> Affine(0.5, 3, 0, 255).round(np.array([-9.0, 0.25, 0.75, 1.0])).tolist()
    [-1.5, 0.0, 1.0, 1.0]
    """

    scale: float
    zero_point: int
    low: int
    high: int

    def codes(self, values: np.ndarray) -> np.ndarray:
        """The codes of float values: halves go to the even code, what lies outside goes to the nearest end."""
        scaled = np.rint(np.asarray(values, np.float32) / np.float32(self.scale))
        return np.clip(scaled + self.zero_point, self.low, self.high)

    def round(self, values: np.ndarray) -> np.ndarray:
        """The values that the codes stand for, float32."""
        return ((self.codes(values) - self.zero_point) * np.float32(self.scale)).astype(np.float32)


def affine(low: float, high: float, *, symmetric: bool = False) -> Affine:
    """The unsigned 8-bit code of a range, widened to hold zero, which is a code exactly.

    `symmetric`: zero is code 128 and the range as wide on both sides, unless nothing lies below zero. A range without
    width gets scale 1.

    >>> affine(0.0, 2.55).zero_point
    0
    """
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if symmetric and low < 0:
        scale, zero = np.float32(max(-low, high) / 127), 128
        return Affine(float(scale) or 1.0, zero, 0, 255)
    scale = np.float32((high - low) / 255)
    if scale < np.finfo(np.float32).tiny:
        return Affine(1.0, 0, 0, 255)
    return Affine(float(scale), int(np.clip(np.rint(-low / float(scale)), 0, 255)), 0, 255)


class Histogram:
    """Counts and sums of the values of a tensor, by bin `[k * width, (k + 1) * width)`, and the exact ends.

    >>> seen = Histogram()
    >>> seen.update(np.array([0.0, 1.0])); seen.update(np.array([-3.0, 2.0]))
    >>> seen.low, seen.high, int(seen.counts.sum())
    (-3.0, 2.0, 4)
    """

    def __init__(self, bins: int = BINS) -> None:
        self.bins = bins
        self.width = 0.0
        self.first = 0
        self.counts = np.zeros(0)
        self.sums = np.zeros(0)
        self.low, self.high = np.inf, -np.inf

    def update(self, values: np.ndarray) -> None:
        """Adds a batch; ValueError where it holds numbers that are not finite."""
        flat = np.asarray(values, np.float64).ravel()
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not np.isfinite([low, high]).all():
            raise ValueError("values that are not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.width == 0.0:
            if self.low == self.high == 0.0:
                self._zeros(flat.size)
                return
            self.width = 2.0 ** np.ceil(np.log2(max(-self.low, self.high) / (self.bins / 2)))
        self._cover()
        at = self._bin(flat) - self.first
        self.counts += np.bincount(at, minlength=len(self.counts))
        self.sums += np.bincount(at, weights=flat, minlength=len(self.sums))

    @property
    def values(self) -> np.ndarray:
        """The mean of the values in each bin that holds any."""
        return self.sums[self.counts > 0] / self.counts[self.counts > 0]

    @property
    def weights(self) -> np.ndarray:
        """How many values each of these bins holds."""
        return self.counts[self.counts > 0]

    def _zeros(self, count: int) -> None:
        if not len(self.counts):
            self.counts, self.sums = np.zeros(1), np.zeros(1)
        self.counts[0] += count

    def _bin(self, values: np.ndarray | float) -> np.ndarray:
        return np.floor(np.asarray(values) / self.width).astype(np.int64)

    def _cover(self) -> None:
        """Widens bins and adds empty ones until all values have a place."""
        if not len(self.counts):
            self.counts, self.sums, self.first = np.zeros(1), np.zeros(1), 0
        while True:
            first = min(self.first, int(self._bin(self.low)))
            last = max(self.first + len(self.counts) - 1, int(self._bin(self.high)))
            if last - first < self.bins:
                break
            self._halve()
        padding = (self.first - first, last - (self.first + len(self.counts) - 1))
        self.counts, self.sums = np.pad(self.counts, padding), np.pad(self.sums, padding)
        self.first = first

    def _halve(self) -> None:
        before = self.first % 2
        after = (before + len(self.counts)) % 2
        self.counts = np.pad(self.counts, (before, after)).reshape(-1, 2).sum(axis=1)
        self.sums = np.pad(self.sums, (before, after)).reshape(-1, 2).sum(axis=1)
        self.first = (self.first - before) // 2
        self.width *= 2


def observe(name: ObserverName, seen: Histogram, *, percentile: float = 99.99, symmetric: bool = False) -> Affine:
    """The 8-bit code that an observer chooses for what it has seen."""
    choices: dict[str, Callable[[], tuple[float, float]]] = {
        "min_max": lambda: (seen.low, seen.high),
        "percentile": lambda: percentile_range(seen, percentile),
        "entropy": lambda: entropy_range(seen, symmetric=symmetric),
        "mse": lambda: mse_range(seen, symmetric=symmetric),
    }
    return affine(*choices[name](), symmetric=symmetric)


def percentile_range(seen: Histogram, percentile: float) -> tuple[float, float]:
    """The range that holds `percentile` percent of the values: cut at both ends alike, or above alone where nothing
    lies below zero. Linear inside a bin."""
    outside = 1 - percentile / 100
    if seen.low >= 0:
        return seen.low, _quantile(seen, 1 - outside)
    if seen.high <= 0:
        return _quantile(seen, outside), seen.high
    return _quantile(seen, outside / 2), _quantile(seen, 1 - outside / 2)


def _quantile(seen: Histogram, share: float) -> float:
    if seen.width == 0.0:
        return 0.0
    edges = (seen.first + np.arange(len(seen.counts) + 1)) * seen.width
    cumulated = np.concatenate([[0.0], np.cumsum(seen.counts)]) / seen.counts.sum()
    return float(np.clip(np.interp(share, cumulated, edges), seen.low, seen.high))


def entropy_range(seen: Histogram, *, symmetric: bool = False) -> tuple[float, float]:
    """The clipping range whose codes keep the distribution of values best, by Kullback-Leibler divergence.

    Of a histogram of at most 2048 bins, thresholds from as many bins as there are levels on are tried: the reference
    holds all beyond in its last bin, the candidate is the same histogram in `levels` steps. Migacz 2017, "8-bit
    inference with TensorRT", which cuts magnitudes at one threshold: so it is where codes are symmetric (128 levels)
    or values have one sign (256). An affine code of values with both signs gets each end cut alone: a threshold on
    magnitudes would cut the longer side, such as the white of normalised images, at the end of the shorter one.
    Also beyond the published: no more than 0.1 % of the values are cut off at one end. The divergence that counts of
    even values have by chance is subtracted, and a tensor with fewer than 16 values a bin gets wider bins (in the end
    its whole range): else few values, such as logits, are cut far too much. Tails heavier than exponential are still
    cut harder than the least squared error would.
    """
    if symmetric or not seen.low < 0 < seen.high:
        levels = LEVELS // 2 if seen.low < 0 < seen.high else LEVELS
        counts, width = _magnitudes(seen)
        kept = best_cut(counts, levels)
        threshold = float(kept * width) if kept < len(counts) else np.inf
        return max(seen.low, -threshold), min(seen.high, threshold)
    counts, first, width = _both_sides(seen)
    below, above = best_cut(counts[::-1], LEVELS), best_cut(counts, LEVELS)
    low = (first + len(counts) - below) * width if below < len(counts) else seen.low
    high = (first + above) * width if above < len(counts) else seen.high
    return max(seen.low, float(low)), min(seen.high, float(high))


def best_cut(counts: np.ndarray, levels: int) -> int:
    """How many bins to keep, counted from the first, so that `levels` steps over them lose least."""
    enough = 1 + int(np.searchsorted(np.cumsum(counts), (1 - CUT_OFF) * counts.sum()))
    least = max(levels, enough)
    if len(counts) <= least:
        return len(counts)
    thresholds = np.unique(np.linspace(least, len(counts), CUTS).astype(int))
    losses = [divergence(counts, int(each), levels) - _chance(counts, int(each), levels) for each in thresholds]
    return int(thresholds[len(losses) - 1 - int(np.argmin(losses[::-1]))])


def _chance(counts: np.ndarray, threshold: int, levels: int) -> float:
    """The expected divergence of counts that are even within each level: 2 N KL is chi-squared distributed, with one
    degree of freedom less in each level than it has bins with values (the G-test)."""
    present = counts[:threshold] > 0
    held = len(np.unique(_steps(threshold, levels)[present]))
    return float((present.sum() - held) / (2 * counts.sum()))


def _magnitudes(seen: Histogram) -> tuple[np.ndarray, float]:
    """The histogram of absolute values from zero on, and its bin width.

    The first bin counts as the second: zeros are a code exactly, and a rectifier's many would outweigh all else.
    """
    index = seen.first + np.arange(len(seen.counts))
    folded = np.where(index >= 0, index, -index - 1)
    counts, width = np.bincount(folded, weights=seen.counts), seen.width
    while len(counts) > _bins_for(counts[1:].sum()):
        counts = np.pad(counts, (0, len(counts) % 2)).reshape(-1, 2).sum(axis=1)
        width *= 2
    if len(counts) > 1:
        counts[0] = counts[1]
    return np.trim_zeros(counts, "b"), width


def _both_sides(seen: Histogram) -> tuple[np.ndarray, int, float]:
    """The histogram of values with both signs: counts, the index of the first bin, its width.

    The two bins at zero count as their neighbours.
    """
    counts, first, width = seen.counts, seen.first, seen.width
    while len(counts) > _bins_for(counts.sum() - counts[-first]):
        before = first % 2
        counts = np.pad(counts, (before, (before + len(counts)) % 2)).reshape(-1, 2).sum(axis=1)
        first, width = (first - before) // 2, width * 2
    counts = counts.copy()
    for at, beside in ((-first, -first + 1), (-first - 1, -first - 2)):
        if 0 <= beside < len(counts):
            counts[at] = counts[beside]
    return counts, first, width


def _bins_for(values: float) -> int:
    return max(1, min(ENTROPY_BINS, int(values / VALUES_A_BIN)))


def _steps(threshold: int, levels: int) -> np.ndarray:
    """The level of each bin."""
    return np.minimum(np.arange(threshold) * levels // threshold, levels - 1)


def divergence(counts: np.ndarray, threshold: int, levels: int) -> float:
    """KL divergence of a histogram clipped after `threshold` bins from the same in `levels` steps; inf where a
    value of the reference has no place in the candidate."""
    kept = counts[:threshold]
    reference = kept.copy()
    reference[-1] += counts[threshold:].sum()
    step = _steps(threshold, levels)
    present = kept > 0
    held = np.bincount(step, weights=present, minlength=levels)
    mass = np.bincount(step, weights=kept, minlength=levels)
    candidate = np.where(present, (mass / np.maximum(held, 1))[step], 0.0)
    some = reference > 0
    if (candidate[some] == 0).any() or not kept.sum():
        return float("inf")
    p, q = reference[some] / reference.sum(), candidate[some] / candidate.sum()
    return float((p * np.log(p / q)).sum())


def mse_range(seen: Histogram, *, symmetric: bool = False) -> tuple[float, float]:
    """The range of the least expected squared error of rounding and clipping, over the histogram.

    Both ends are searched in turn over fractions of the observed range, three times (symmetric: together).
    """
    if seen.width == 0.0:
        return seen.low, seen.high
    values, weights = seen.values, seen.weights

    def loss(low: float, high: float) -> float:
        return float(weights @ (affine(low, high, symmetric=symmetric).round(values) - values) ** 2)

    def best(ranges: list[tuple[float, float]]) -> tuple[float, float]:
        return min(ranges, key=lambda each: loss(*each))

    if symmetric or not seen.low < 0 < seen.high:
        return best([(seen.low * share, seen.high * share) for share in SEARCH])
    low, high = seen.low, seen.high
    for _ in range(3):
        low, high = best([(low, high), *((low, seen.high * share) for share in SEARCH)])
        low, high = best([(low, high), *((seen.low * share, high) for share in SEARCH)])
    return low, high


def weight_scales(weight: np.ndarray, axis: int | None, observer: Literal["min_max", "mse"] = "min_max") -> np.ndarray:
    """Scales of signed symmetric 8-bit weights, codes -127 to 127: one a channel along `axis`, or one (None).

    "mse" tries fractions of the largest magnitude from one half on. Channels of zeros get 0.

    >>> weight_scales(np.array([[1.27, 0.0], [0.0, 2.54]]), 0).round(4).tolist()
    [0.01, 0.02]
    """
    rows = weight.reshape(1, -1) if axis is None else np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    rows = rows.astype(np.float64)
    full = np.abs(rows).max(axis=1) / 127
    if observer == "min_max":
        return full
    best, least = full.copy(), np.full(len(rows), np.inf)
    for share in SEARCH[SEARCH >= 0.5]:
        scales = full * share
        safe = np.where(scales > 0, scales, 1.0)[:, None]
        error = ((np.clip(np.rint(rows / safe), -127, 127) * safe - rows) ** 2).sum(axis=1)
        best, least = np.where(error < least, scales, best), np.minimum(error, least)
    return best
