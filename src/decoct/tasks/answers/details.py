"""Details: what a page tells beyond scores, class by class and of single samples on which two models differ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from decoct.tasks.answers.metrics import Column, confusion_matrix, log_softmax

KEPT = 2**22
"""Most numbers that are kept of one model for its curves."""
CURVES, POINTS = 30, 40
"""Classes up to which each has a curve, and the points of one."""
FIGURES = 500
"""Classes up to which each has figures."""
OF_ONE_CLASS = 3
"""Most samples of one class among those on which two models differ, while others wait."""


class Details(ABC):
    """Looks closer at one model in one pass, beside its Tally, and at the model that it is compared with."""

    @abstractmethod
    def add(self, logits: np.ndarray, target: np.ndarray, reference: np.ndarray | None) -> None:
        """Counts a batch: logits `[B, C]` float64 of the model and of the reference, targets `[B]` or `[B, D]`."""

    def by_class(self) -> list[dict[str, Any]]:
        """Figures of each class; empty where there are none."""
        return []

    @abstractmethod
    def apart(self, most: int) -> tuple[int, list[dict[str, Any]]]:
        """On how many samples both differ, and `most` of them, those that tell most first: `index` in the split,
        `true`, and what `model` and `reference` said."""


class ClassDetails(Details):
    """Precision, recall, F1 and the precision-recall curve of each class; samples that get another class."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._true, self._said, self._other = Column(np.int64), Column(np.int64), Column(np.int64)
        self._sure, self._other_sure = Column(), Column()
        self._log_q: list[np.ndarray] | None = []
        self._values = 0

    def add(self, logits: np.ndarray, target: np.ndarray, reference: np.ndarray | None) -> None:
        log_q = log_softmax(logits)
        self._true.add(target)
        self._said.add(logits.argmax(axis=1))
        self._sure.add(np.exp(log_q.max(axis=1)))
        if reference is not None:
            self._other.add(reference.argmax(axis=1))
            self._other_sure.add(np.exp(log_softmax(reference).max(axis=1)))
        self._values += log_q.size
        if self._values > KEPT or logits.shape[1] > CURVES:
            self._log_q = None
        if self._log_q is not None:
            self._log_q.append(log_q)

    def by_class(self) -> list[dict[str, Any]]:
        """`label`, samples `n`, `precision` (None where nothing was answered so), `recall`, `f1`, and where they are
        known `average_precision` and its `curve`: precision and recall, falling thresholds first to last."""
        true, said = self._true.all(), self._said.all()
        counted = (true >= 0) & (true < len(self._names))
        if not counted.any() or len(self._names) > FIGURES:
            return []
        matrix = confusion_matrix(said[counted], true[counted], len(self._names))
        log_q = None if self._log_q is None else np.concatenate(self._log_q)[counted]
        found = []
        for i, name in enumerate(self._names):
            right, n, answered = int(matrix[i, i]), int(matrix[i].sum()), int(matrix[:, i].sum())
            each: dict[str, Any] = {
                "label": name,
                "n": n,
                "precision": right / answered if answered else None,
                "recall": right / n if n else None,
                "f1": 2 * right / (n + answered) if n + answered else None,
            }
            if log_q is not None and n:
                each |= curve(log_q[:, i], true[counted] == i)
            found.append(each)
        return found

    def apart(self, most: int) -> tuple[int, list[dict[str, Any]]]:
        """Samples of the classes that the model recognises worst first; of a class those it is surest about."""
        if not self._other.count:
            return 0, []
        true, said, other = self._true.all(), self._said.all(), self._other.all()
        places = np.flatnonzero(said != other)
        recall = np.ones(len(self._names) + 1)
        for label in np.unique(true[(true >= 0) & (true < len(self._names))]):
            recall[label] = (said[true == label] == label).mean()
        sure = self._sure.all()
        known = np.where((true < 0) | (true >= len(self._names)), len(self._names), true)
        ordered = sorted(places.tolist(), key=lambda i: (recall[known[i]], known[i], said[i] == true[i], -sure[i]))
        chosen = first_few(ordered, known, most)
        other_sure = self._other_sure.all()
        return len(places), [
            {
                "index": i,
                "true": self._names[known[i]] if known[i] < len(self._names) else None,
                "model": {"class": self._names[said[i]], "probability": float(sure[i])},
                "reference": {"class": self._names[other[i]], "probability": float(other_sure[i])},
            }
            for i in chosen
        ]


class NumberDetails(Details):
    """Samples on which two models predict numbers furthest apart, in the target's units."""

    def __init__(self, mean: np.ndarray, std: np.ndarray) -> None:
        self._mean, self._std = mean, std
        self._true: list[np.ndarray] = []
        self._said: list[np.ndarray] = []
        self._other: list[np.ndarray] = []

    def add(self, logits: np.ndarray, target: np.ndarray, reference: np.ndarray | None) -> None:
        if reference is not None:
            self._true.append(target)
            self._said.append(logits)
            self._other.append(reference)

    def apart(self, most: int) -> tuple[int, list[dict[str, Any]]]:
        """Those that differ most, measured in standard deviations of the target, first."""
        if not self._said:
            return 0, []
        true, said, other = (np.concatenate(each) for each in (self._true, self._said, self._other))
        distance = np.abs(said - other).mean(axis=1)
        places = np.argsort(-distance, kind="stable")[:most]
        return int((distance > 0).sum()), [
            {
                "index": int(i),
                "true": None if np.isnan(true[i]).any() else self._in_units(true[i]),
                "model": {"values": self._in_units(said[i])},
                "reference": {"values": self._in_units(other[i])},
            }
            for i in places
            if distance[i] > 0
        ]

    def _in_units(self, value: np.ndarray) -> list[float]:
        return [float(each) for each in value * self._std + self._mean]


def curve(scores: np.ndarray, positive: np.ndarray) -> dict[str, Any]:
    """Precision and recall over all thresholds, thinned for a picture, and the average precision of all of them.

    `scores` and `positive` `[N]`, at least one positive. Average precision is Σ (Rₙ − Rₙ₋₁) Pₙ, without interpolation.

    >>> found = curve(np.array([0.9, 0.8, 0.3]), np.array([True, False, True]))
    >>> round(found["average_precision"], 4), found["curve"]["recall"]
    (0.8333, [0.0, 0.5, 0.5, 1.0])
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    precision, recall, _ = precision_recall_curve(positive, scores)
    places = thinned(recall, POINTS)[::-1]
    return {
        "average_precision": float(average_precision_score(positive, scores)),
        "curve": {
            "recall": [round(float(recall[i]), 4) for i in places],
            "precision": [round(float(precision[i]), 4) for i in places],
        },
    }


def thinned(recall: np.ndarray, most: int) -> list[int]:
    """Places of at most `most` points of a curve whose recall falls, evenly over recall, both ends among them.

    >>> thinned(np.linspace(1, 0, 101), 5)
    [0, 25, 50, 75, 100]
    """
    if len(recall) <= most:
        return list(range(len(recall)))
    wanted = np.linspace(recall[0], recall[-1], most)
    places = np.clip(np.searchsorted(-recall, -wanted), 0, len(recall) - 1)
    return sorted({0, len(recall) - 1, *places[1:-1].tolist()})


def first_few(ordered: Sequence[int], groups: np.ndarray, most: int) -> list[int]:
    """The first `most` of `ordered`, at most three of a group as long as others wait.

    >>> first_few([0, 1, 2, 3, 4], np.array([0, 0, 0, 0, 1]), 4)
    [0, 1, 2, 4]
    """
    seen: dict[int, int] = {}
    first: list[int] = []
    later: list[int] = []
    for i in ordered:
        count = seen[int(groups[i])] = seen.get(int(groups[i]), 0) + 1
        (first if count <= OF_ONE_CLASS else later).append(i)
    return [*first, *later][:most]
