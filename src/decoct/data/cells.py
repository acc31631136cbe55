"""Tables as their files give them: blocks of rows, so that no table must fit into memory."""

from __future__ import annotations

import csv
import itertools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from decoct.data.files import open_bytes, open_text
from decoct.errors import DataError, RecipeError, did_you_mean

if TYPE_CHECKING:
    import pyarrow

BLOCK_BYTES = 1 << 18
"""Of a text file, read at a time."""
BLOCK_ROWS = 1 << 14


class Cells(ABC):
    """A table of named columns of cells, in blocks of rows."""

    path: Path
    names: tuple[str, ...]

    @abstractmethod
    def blocks(
        self, names: Sequence[str], numbers: Collection[str] = (), missing: Sequence[str] = ()
    ) -> Iterator[list[pyarrow.Array]]:
        """Some columns by name, each as arrays of the next rows: texts, or what a typed file holds.

        `numbers`: columns that may come as float64 if all of their cells are numbers or among the `missing`, which
        become null.
        """

    @abstractmethod
    def where(self, row: int) -> str:
        """The file and the place in it where a row stands, for errors."""

    @cached_property
    def places(self) -> dict[str, int]:
        """Which column has a name."""
        return {name: at for at, name in enumerate(self.names)}

    def require(self, name: str, setting: str) -> str:
        """The name itself; RecipeError names the nearest where the table lacks it."""
        if name not in self.places:
            raise RecipeError(f"{setting}: {self.path.name} has no column {name!r}; {did_you_mean(name, self.names)}")
        return name


class Delimited(Cells):
    """A delimited text file, gzip or not, with quoted cells; without header the columns are called "0", "1", ...

    Cells are texts without blanks around them.
    """

    def __init__(self, path: Path, delimiter: str = ",", header: bool = True) -> None:
        self.path, self.delimiter, self.header = path, delimiter, header
        first, _ = next(self._rows(), (None, 0))
        if first is None:
            raise DataError(f"{path}: the file is empty")
        self._first, self._width = first, len(first)
        self.names = tuple(map(str.strip, first)) if header else tuple(map(str, range(len(first))))
        if len(set(self.names)) < len(self.names):
            twice = Counter(self.names).most_common(1)[0][0]
            raise DataError(f"{path}: two columns are called {twice!r}")

    def blocks(
        self, names: Sequence[str], numbers: Collection[str] = (), missing: Sequence[str] = ()
    ) -> Iterator[list[pyarrow.Array]]:
        places, rows = [self.places[name] for name in names], 0
        typed = {self.places[name] for name in numbers}
        for block in self._read(places, typed, missing):
            rows += len(block[0])
            yield [each if each.type == "double" else _trimmed(each) for each in block]
        if not rows:
            raise DataError(f"{self.path}: a header and no rows")

    def where(self, row: int) -> str:
        return f"{self.path}, line {self.line(row)}"

    def line(self, row: int) -> int:
        """The line of the file on which a row ends, counted from 1."""
        _, number = next(itertools.islice(self._rows(), row + self.header, None))
        return number

    def _read(
        self, places: Sequence[int], typed: Collection[int], missing: Sequence[str]
    ) -> Iterator[list[pyarrow.Array]]:
        """The columns at `places` as pyarrow reads them: numbers, where it refuses those texts, and where it refuses
        the file, what the csv module reads."""
        done = 0
        for way in (typed, ()) if typed else ((),):
            for block in self._by_arrow(places, way, missing, done):
                if block is None:
                    break
                done += len(block[0])
                yield block
            else:
                return
        yield from self._by_rows(places, done)

    def _by_arrow(
        self, places: Sequence[int], typed: Collection[int], missing: Sequence[str], done: int
    ) -> Iterator[list[pyarrow.Array] | None]:
        """The rows after the first `done`; None at the end where pyarrow refuses what follows."""
        import pyarrow
        import pyarrow.csv

        names = list(map(str, range(self._width)))
        types = {name: pyarrow.float64() if at in typed else pyarrow.string() for at, name in enumerate(names)}
        refusals = (pyarrow.ArrowInvalid, pyarrow.ArrowKeyError, ValueError)
        heads = dict(zip(names, self._first if self.header else names))
        with open_bytes(self.path) as file:
            try:
                reader = pyarrow.csv.open_csv(
                    file,
                    read_options=pyarrow.csv.ReadOptions(
                        column_names=None if self.header else names, block_size=BLOCK_BYTES, use_threads=False
                    ),
                    parse_options=pyarrow.csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True),
                    convert_options=pyarrow.csv.ConvertOptions(
                        column_types={heads[name]: kind for name, kind in types.items()},
                        include_columns=[heads[names[place]] for place in places],
                        null_values=list(missing),
                    ),
                )
            except refusals:
                yield None
                return
            while True:
                try:
                    block = reader.read_next_batch()
                except StopIteration:
                    return
                except refusals:
                    yield None
                    return
                if len(block) > done:
                    yield [each[done:] for each in block.columns]
                done = max(0, done - len(block))

    def _by_rows(self, places: Sequence[int], done: int) -> Iterator[list[pyarrow.Array]]:
        """The rows after the first `done`, one by one: read all the same, or refused by line."""
        import pyarrow

        rows = itertools.islice(self._checked_rows(), self.header + done, None)
        for block in iter(lambda: list(itertools.islice(rows, BLOCK_ROWS)), []):
            yield [pyarrow.array([row[place] for row in block], pyarrow.string()) for place in places]

    def _checked_rows(self) -> Iterator[list[str]]:
        for row, line in self._rows():
            if len(row) != self._width:
                raise DataError(
                    f"{self.path}, line {line}: {len(row)} cells, expected {self._width} (delimiter {self.delimiter!r})"
                )
            yield row

    def _rows(self) -> Iterator[tuple[list[str], int]]:
        """The rows that are not blank, each with the line on which it ends."""
        with open_text(self.path, newline="") as text:
            reader = csv.reader(text, delimiter=self.delimiter)
            try:
                for row in reader:
                    if row:
                        yield row, reader.line_num
            except csv.Error as error:
                raise DataError(f"{self.path}, line {reader.line_num}: {error}") from None


def _trimmed(cells: pyarrow.Array) -> pyarrow.Array:
    import pyarrow.compute

    return pyarrow.compute.utf8_trim_whitespace(cells)
