"""Coded: a column of texts, of which each different one is held once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from decoct.data.mapped import Rows


class Coded:
    """Texts added block by block, kept as numbers in the order in which they first came.

    >>> found = Coded()
    >>> found.add(["b", "a", "b"])
    >>> found.done().tolist(), found.values({"a": 0.0, "b": 1.0}).tolist()
    ([0, 1, 0], [1.0, 0.0])
    """

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self._rows = Rows(np.int32)

    def add(self, texts: Any) -> None:
        """Adds some: a sequence of texts, or an array of pyarrow."""
        if isinstance(texts, Sequence):
            numbers = [self.names.setdefault(each, len(self.names)) for each in texts]
            return self._rows.add(np.array(numbers, np.int32))
        found = texts.dictionary_encode()
        own = [self.names.setdefault(each, len(self.names)) for each in found.dictionary.to_pylist()]
        return self._rows.add(np.array(own, np.int32)[found.indices.to_numpy()])

    def done(self) -> np.ndarray:
        """int32 `[N]`: the number of each text."""
        return self._rows.done()

    def values(self, known: Mapping[str, float]) -> np.ndarray:
        """float64: what stands for each number, NaN for texts that are not `known`."""
        return np.array([known.get(each, np.nan) for each in self.names], np.float64)

    def text(self, number: int) -> str:
        """The text of a number."""
        return next(text for text, own in self.names.items() if own == number)
