"""Confusion matrices and what changed for each class."""

from __future__ import annotations

import math
from dataclasses import dataclass

from decoct.report.records import Confusion, ModelRecord


@dataclass(frozen=True)
class Square:
    """One cell of a matrix: its count and its share of the samples of its true class."""

    count: float
    share: float
    right: bool

    @property
    def shade(self) -> float:
        """From 0 to 1, the root of the share: a few mistakes are seen, and more of them are always darker.

        >>> Square(1, 0.04, False).shade, Square(9, 0.36, False).shade, Square(25, 1.0, True).shade
        (0.2, 0.6, 1.0)
        """
        return math.sqrt(self.share)


@dataclass(frozen=True)
class ClassChange:
    """The recall of one class by teacher and student (None: no samples), and the difference in points."""

    label: str
    n: int
    teacher: float | None
    student: float | None
    precision: float | None = None
    """The student's: the share of its answers of this class that are right."""
    average_precision: float | None = None

    @property
    def points(self) -> float:
        """Student minus teacher, in points."""
        return 100 * ((self.student or 0.0) - (self.teacher or 0.0))


def squares(confusion: Confusion) -> list[tuple[str, list[Square]]]:
    """The rows of a matrix by true class."""
    rows = []
    for i, (label, row) in enumerate(zip(confusion.labels, confusion.matrix)):
        total = sum(row)
        rows.append((str(label), [Square(n, n / total if total else 0.0, i == j) for j, n in enumerate(row)]))
    return rows


def mistakes(confusion: Confusion, most: int = 10) -> list[tuple[str, str, int]]:
    """The most frequent confusions: true class, answered class, count."""
    labels = [str(label) for label in confusion.labels]
    pairs = [
        (labels[i], labels[j], round(n))
        for i, row in enumerate(confusion.matrix)
        for j, n in enumerate(row)
        if i != j and n > 0
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:most]


def changes(teacher: ModelRecord, student: ModelRecord) -> list[ClassChange]:
    """Recall class by class; empty unless both have matrices over the same labels."""
    first, second = teacher.confusion, student.confusion
    if first is None or second is None or not first.usable() or not second.usable() or first.labels != second.labels:
        return []
    found, figures = [], {str(each.label): each for each in student.classes}
    for i, label in enumerate(first.labels):
        totals = [sum(confusion.matrix[i]) for confusion in (first, second)]
        taught, recall = (c.matrix[i][i] / n if n else None for c, n in zip((first, second), totals))
        answered = sum(row[i] for row in second.matrix)
        precision = second.matrix[i][i] / answered if answered else None
        mine = figures.get(str(label))
        area = mine.average_precision if mine else None
        found.append(ClassChange(str(label), round(totals[1]), taught, recall, precision, area))
    return found
