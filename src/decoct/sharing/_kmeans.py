"""k-means of numbers: Lloyd's algorithm on sorted data, without chance."""

from __future__ import annotations

import heapq
from typing import Literal

import numpy as np

ROUNDS = 300


def kmeans(values: np.ndarray, clusters: int, init: Literal["linear", "quantile"] = "linear") -> np.ndarray:
    """The centroids, sorted, float64; at most as many as there are different values.

    Lloyd's algorithm to its fixed point. `init`: evenly over the range, or at even quantiles. In place of clusters
    without members those of the largest sum of squares are split at their means.

    >>> kmeans(np.array([0.0, 0.0, 1.0, 5.0, 6.0]), 2).round(3)
    array([0.333, 5.5  ])
    """
    data = np.sort(np.asarray(values, dtype=np.float64).ravel())
    different = np.unique(data)
    if len(different) <= clusters:
        return different
    sums = _Sums(data)
    centroids, bounds = _start(data, clusters, init), np.zeros(0, dtype=np.int64)
    for _ in range(ROUNDS):
        found = np.searchsorted(data, (centroids[1:] + centroids[:-1]) / 2)
        before, bounds = bounds, np.concatenate([[0], found, [len(data)]])
        if np.array_equal(before, bounds):
            break
        if not np.diff(bounds).all():
            bounds = sums.split(np.unique(bounds), clusters)
        centroids = sums.means(bounds)
    return centroids


class _Sums:
    """Sums and sums of squares over any stretch of sorted data, taken about the mean."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.mean = data, data.mean()
        self.first = np.concatenate([[0.0], np.cumsum(data - self.mean)])
        self.second = np.concatenate([[0.0], np.cumsum((data - self.mean) ** 2)])

    def means(self, bounds: np.ndarray) -> np.ndarray:
        """The mean of each stretch between bounds."""
        found: np.ndarray = np.diff(self.first[bounds]) / np.diff(bounds) + self.mean
        return found

    def spread(self, start: int, end: int) -> float:
        """The sum of squared distances from the mean of a stretch."""
        if self.data[start] == self.data[end - 1]:
            return 0.0
        total = self.first[end] - self.first[start]
        return float(self.second[end] - self.second[start] - total**2 / (end - start))

    def split(self, bounds: np.ndarray, clusters: int) -> np.ndarray:
        """More bounds, until there are `clusters` stretches; the widest is split at its mean each time."""
        heap = [(-self.spread(a, b), a, b) for a, b in zip(bounds.tolist(), bounds[1:].tolist())]
        heapq.heapify(heap)
        while len(heap) < clusters:
            _, start, end = heapq.heappop(heap)
            mean = (self.first[end] - self.first[start]) / (end - start) + self.mean
            middle = start + int(np.searchsorted(self.data[start:end], mean))
            middle = min(max(middle, start + 1), end - 1)
            for a, b in ((start, middle), (middle, end)):
                heapq.heappush(heap, (-self.spread(a, b), a, b))
        return np.array([*sorted(start for _, start, _ in heap), len(self.data)])


def nearest(values: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The place of the nearest of sorted centroids for each value; of two equally near the higher."""
    return np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values, side="right")


def _start(data: np.ndarray, clusters: int, init: str) -> np.ndarray:
    if init == "linear":
        return np.linspace(data[0], data[-1], clusters)
    places = (np.arange(clusters) + 0.5) / clusters
    return np.quantile(data, places)
