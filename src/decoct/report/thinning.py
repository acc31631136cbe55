"""A long log thinned while it is read, so that a page costs no more for a training of a million steps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

PARTS = 4096
"""Of a training with more records than this, those of so many parts or half as many are read."""
_TRAINED = re.compile(
    r'(\{"step": "[^"\\]*", "seed": -?\d+, )"step_number": \d+, "kind": "train", (?:"epoch": \d+, )?'
    r'"loss": (-?\d+(?:\.\d+)?(?:e[-+]?\d+)?)[,}]'
)

_Line = tuple[float, int, str]
"""The loss that a line tells, its number in the log, the line."""


def thinned_lines(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a log in order, but of a long training those at which its loss is extreme, its first and its last.

    Lines that tell anything else, and those not written as decoct writes them, are all kept.
    """
    training, others, before = _Training(), list[tuple[int, str]](), ""
    for number, line in enumerate(lines):
        found = _TRAINED.match(line)
        if found is None:
            others.append((number, line))
            continue
        if found[1] != before:
            yield from _in_order(training, others)
            training, others, before = _Training(), [], found[1]
        training.add((float(found[2]), number, line))
    yield from _in_order(training, others)


def _in_order(training: _Training, others: Iterable[tuple[int, str]]) -> list[str]:
    kept = dict(others)
    kept.update((number, line) for _, number, line in training.kept())
    return [kept[number] for number in sorted(kept)]


class _Training:
    """The lines of one training: all of them up to `PARTS`, then of each part the first, the lowest, the highest."""

    def __init__(self) -> None:
        self.parts: list[tuple[_Line, _Line, _Line]] = []
        self.size = 1
        self.count = 0
        self.last: list[_Line] = []

    def add(self, line: _Line) -> None:
        if self.count % self.size == 0 and len(self.parts) == PARTS:
            self.parts = [(a[0], min(a[1], b[1]), max(a[2], b[2])) for a, b in zip(self.parts[::2], self.parts[1::2])]
            self.size *= 2
        if self.count % self.size == 0:
            self.parts.append((line, line, line))
        else:
            first, low, high = self.parts[-1]
            if line < low or line > high:
                self.parts[-1] = first, min(low, line), max(high, line)
        self.count += 1
        self.last = [line]

    def kept(self) -> Iterator[_Line]:
        for part in self.parts:
            yield from part
        yield from self.last
