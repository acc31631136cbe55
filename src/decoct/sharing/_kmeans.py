"""k-means of numbers: Lloyd's algorithm on sorted data, without chance."""

from __future__ import annotations

from typing import Literal

import numpy as np

ROUNDS = 300


def kmeans(values: np.ndarray, clusters: int, init: Literal["linear", "quantile"] = "linear") -> np.ndarray:
    """The centroids, sorted, float64; at most as many as there are different values.

    Lloyd's algorithm to its fixed point. `init`: evenly over the range, or at even quantiles. A cluster without
    members takes the value that is farthest from its centroid.

    >>> kmeans(np.array([0.0, 0.0, 1.0, 5.0, 6.0]), 2).round(3)
    array([0.333, 5.5  ])
    """
    data = np.sort(np.asarray(values, dtype=np.float64).ravel())
    different = np.unique(data)
    if len(different) <= clusters:
        return different
    sums = np.concatenate([[0.0], np.cumsum(data - data.mean())])
    centroids = _start(data, clusters, init)
    cuts = np.zeros(0, dtype=np.int64)
    for _ in range(ROUNDS):
        found = np.searchsorted(data, (centroids[1:] + centroids[:-1]) / 2)
        bounds = np.concatenate([[0], found, [len(data)]])
        counts = np.diff(bounds)
        if counts.all() and np.array_equal(found, cuts):
            break
        cuts = found
        means = np.diff(sums[bounds]) / np.maximum(counts, 1) + data.mean()
        centroids = np.where(counts > 0, means, centroids)
        if not counts.all():
            centroids = _refilled(data, centroids, bounds)
    return centroids


def nearest(values: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The place of the nearest of sorted centroids for each value; of two equally near the higher."""
    return np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values, side="right")


def _start(data: np.ndarray, clusters: int, init: str) -> np.ndarray:
    if init == "linear":
        return np.linspace(data[0], data[-1], clusters)
    places = (np.arange(clusters) + 0.5) / clusters
    return np.quantile(data, places)


def _refilled(data: np.ndarray, centroids: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Moves each centroid without members to an end of the cluster that reaches farthest."""
    counts = np.diff(bounds)
    full = np.flatnonzero(counts)
    first, last = data[bounds[full]], data[bounds[full + 1] - 1]
    lower, upper = centroids[full] - first, last - centroids[full]
    order = np.argsort(-np.maximum(lower, upper), kind="stable")
    empty = np.flatnonzero(counts == 0)[: len(order)]
    chosen = order[: len(empty)]
    centroids = centroids.copy()
    centroids[empty] = np.where(lower > upper, first, last)[chosen]
    return np.sort(centroids)
