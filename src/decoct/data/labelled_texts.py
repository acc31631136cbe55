"""LabelledTexts: texts with a label and a place each, read once, a block in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from decoct.data.base import Split
from decoct.data.coded import Coded
from decoct.data.hashing import text_keys
from decoct.data.mapped import BLOCK, Rows, spans
from decoct.data.stored_texts import TextRows
from decoct.errors import DataError

BLOCK_CHARACTERS = 1 << 20
"""Of texts that are in memory at a time, with the one that exceeds them."""


def blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Neighbouring texts, of at most BLOCK and not many more than BLOCK_CHARACTERS characters."""
    every = iter(texts)
    while found := list(_first(every)):
        yield found


def _first(texts: Iterator[str]) -> Iterator[str]:
    size = 0
    for text in islice(texts, BLOCK):
        yield text
        size += len(text)
        if size > BLOCK_CHARACTERS:
            return


def stored(texts: Iterable[str]) -> Split:
    """A split of texts alone."""
    rows, keys = TextRows(), Rows(np.uint64)
    for block in blocks(texts):
        rows.add(block)
        keys.add(text_keys(block))
    return Split({"text": rows.done()}, keys.done())


class LabelledTexts:
    """Reads `(text, label, place in the file)` one after the other."""

    def __init__(self, rows: Iterable[tuple[str, str, int]]) -> None:
        self.labels, self._places = Coded(), Rows(np.int64)
        labels: list[str] = []
        places: list[int] = []

        def texts() -> Iterator[str]:
            for text, label, place in rows:
                labels.append(label)
                places.append(place)
                if len(labels) == BLOCK:
                    self._add(labels, places)
                yield text

        self._split = stored(texts())
        self._add(labels, places)

    def _add(self, labels: list[str], places: list[int]) -> None:
        self.labels.add(labels)
        self._places.add(np.array(places, np.int64))
        labels.clear()
        places.clear()

    def split(self, classes: Sequence[str], stray: Callable[[int, str], DataError]) -> Split:
        """The split, `label` int64 the place among `classes`; raises what `stray` makes of the first place and label
        that are of none."""
        values = self.labels.values({name: float(at) for at, name in enumerate(classes)})
        codes, places, labels = self.labels.done(), self._places.done(), Rows(np.int64)
        for part in spans(len(codes)):
            found = values[codes[part]]
            if np.isnan(found).any():
                at = part.start + int(np.flatnonzero(np.isnan(found))[0])
                raise stray(int(places[at]), self.labels.text(int(codes[at])))
            labels.add(found.astype(np.int64))
        return Split({**self._split.columns, "label": labels.done()}, self._split.keys)
