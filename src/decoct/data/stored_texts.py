"""StoredTexts: many texts as the bytes of one array, in memory or mapped from a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import overload

import numpy as np

from decoct.data.mapped import LEAST, Rows, is_mapped, spans


class StoredTexts(Sequence[str]):
    """Texts that stand end to end in one array of bytes: text i ends at byte `ends[i]`.

    >>> StoredTexts(np.frombuffer(b"abcd", np.uint8), np.array([1, 4]))[1]
    'bcd'
    """

    def __init__(self, content: np.ndarray, ends: np.ndarray, home: Path | None = None) -> None:
        self.content, self.ends = content, ends
        self.home = home
        """A folder for what is made of these texts, where the index holds them."""

    @classmethod
    def of(cls, texts: Sequence[str]) -> StoredTexts:
        """Texts of any sequence, in memory."""
        encoded = [each.encode("utf-8", "surrogatepass") for each in texts]
        ends = np.cumsum([len(each) for each in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> list[str]: ...

    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            if step != 1:
                return [self[each] for each in range(start, stop, step)]
            return [_text(each) for each in self._cut(slice(start, max(start, stop)))]
        at = range(len(self))[place]
        return self[at : at + 1][0]

    def __iter__(self) -> Iterator[str]:
        for part in spans(len(self)):
            yield from map(_text, self._cut(part))

    def take(self, indices: np.ndarray) -> list[str] | StoredTexts:
        """The texts at `indices`; of mapped ones, mapped."""
        if not is_mapped(self.content):
            return [self[each] for each in indices.tolist()]
        found = TextRows()
        content = memoryview(self.content)  # type: ignore[arg-type]
        for part in spans(len(indices)):
            own = indices[part]
            starts = np.where(own > 0, self.ends[own - 1], 0)
            pairs = zip(starts.tolist(), self.ends[own].tolist())
            found.add_bytes([content[start:end] for start, end in pairs])
        return found.done()

    def where(self, mask: np.ndarray) -> list[str] | StoredTexts:
        """The texts where `mask`, bool `[N]`, says so."""
        if not is_mapped(self.content):
            return self.take(np.flatnonzero(mask))
        found = TextRows()
        for part in spans(len(self)):
            found.add_bytes([each for each, wanted in zip(self._cut(part), mask[part].tolist()) if wanted])
        return found.done()

    def _cut(self, part: slice) -> Iterator[memoryview]:
        content = memoryview(self.content)  # type: ignore[arg-type]
        first = int(self.ends[part.start - 1]) if part.start else 0
        return (content[start:end] for start, end in pairwise([first, *self.ends[part].tolist()]))


def _text(part: memoryview) -> str:
    return str(part, "utf-8", "surrogatepass")


class TextRows:
    """Texts added block by block.

    >>> rows = TextRows()
    >>> rows.add(["a", "bc"])
    >>> rows.done()
    ['a', 'bc']
    """

    def __init__(self) -> None:
        self._content, self._ends = Rows(np.uint8), Rows(np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, texts: Sequence[str]) -> None:
        """Adds some."""
        self.add_bytes([each.encode("utf-8", "surrogatepass") for each in texts])

    def add_bytes(self, texts: Sequence[bytes | memoryview]) -> None:
        """Adds some that are UTF-8 already."""
        ends = np.cumsum([len(each) for each in texts], dtype=np.int64) + len(self._content)
        self._content.add(np.frombuffer(b"".join(texts), np.uint8))
        self._ends.add(ends)

    def done(self) -> list[str] | StoredTexts:
        """All of them: a list where they are few."""
        content, ends = self._content.done(), self._ends.done()
        found = StoredTexts(content, ends)
        return found if content.nbytes > LEAST else list(found)
