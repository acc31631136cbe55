"""Tables of cells turned into numeric columns, a block of rows at a time."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from decoct.data.base import Split
from decoct.data.cells import Cells, Delimited
from decoct.data.coded import Coded
from decoct.data.hashing import content_keys
from decoct.data.mapped import Rows, spans
from decoct.errors import DataError, RecipeError

if TYPE_CHECKING:
    import pyarrow

MISSING = ("", "NA", "NaN", "nan", "?")


class Table(Cells):
    """A table that was read as a whole: its columns of texts without blanks around them."""

    def __init__(self, source: Delimited) -> None:
        import pyarrow

        self.path, self.names, self._source = source.path, source.names, source
        blocks = list(source.blocks(source.names))
        self.columns = tuple(pyarrow.chunked_array(each, pyarrow.string()).combine_chunks() for each in zip(*blocks))

    def blocks(
        self, names: Sequence[str], numbers: Collection[str] = (), missing: Sequence[str] = ()
    ) -> Iterator[list[pyarrow.StringArray]]:
        yield [self.columns[self.places[name]] for name in names]

    def cells(self, name: str, setting: str) -> pyarrow.StringArray:
        """The cells of one column; RecipeError names the nearest where the table lacks it."""
        return self.columns[self.places[self.require(name, setting)]]

    def column(self, name: str, setting: str) -> list[str]:
        """The cells of one column as a list."""
        found: list[str] = self.cells(name, setting).to_pylist()
        return found

    def where(self, row: int) -> str:
        return self._source.where(row)

    def line(self, row: int) -> int:
        """The line of the file on which a row ends, counted from 1."""
        return self._source.line(row)


@dataclass(frozen=True)
class Layout:
    """What the columns of a table mean."""

    target: str
    kind: Literal["classification", "regression"]
    categorical: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    missing: tuple[str, ...] = MISSING
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Columns:
    """Tables made numeric with one coding: splits, class names, feature names and the values of categories."""

    splits: dict[str, Split]
    classes: tuple[str, ...]
    features: tuple[str, ...]
    categories: dict[str, dict[str, float]]


def read_table(path: Path, *, delimiter: str = ",", header: bool = True) -> Table:
    """A delimited file as a whole, gzip or not; without header the columns are called "0", "1", ..."""
    return Table(Delimited(path, delimiter, header))


def make_columns(tables: Mapping[str, Cells], layout: Layout) -> Columns:
    """Splits with `features` float64 (NaN = missing) and `label` or `value`, read a block of rows at a time.

    A categorical column holds numbers if all of its cells are numbers, else the rank of its text among all of its
    texts; `categories` maps each text to its number.
    """
    train = tables["train"]
    train.require(layout.target, "data.target")
    for setting, names in (("data.categorical", layout.categorical), ("data.drop", layout.drop)):
        for name in names:
            train.require(name, setting)
    left_out = {layout.target, *layout.drop}
    features = tuple(name for name in train.names if name not in left_out)
    if not features:
        raise RecipeError(f"data.drop: {train.path.name} has no column left beside the target {layout.target!r}")
    named = [name for name in features if name in layout.categorical]
    read = {name: _Read(table, layout, features, named) for name, table in tables.items()}
    categories = {
        name: _category_values({text for each in read.values() for text in each.coded[name].names}, layout)
        for name in named
    }
    classes = layout.classes
    if layout.kind == "classification" and not classes:
        classes = _class_names(train, read["train"].target.names, layout)
    splits = {name: each.split(categories, classes) for name, each in read.items()}
    return Columns(splits, classes, features, categories)


class _Read:
    """One table, read once: its numbers and keys, and its texts as codes until all texts are known."""

    def __init__(self, table: Cells, layout: Layout, features: Sequence[str], named: Sequence[str]) -> None:
        self.table, self.layout, self.features = table, layout, features
        self.coded = {name: Coded() for name in named}
        self.target, self.values = Coded(), Rows(np.float64)
        numbers, keys = Rows(np.float64, (len(features),)), Rows(np.uint64)
        for name in features:
            table.require(name, "data")
        numeric = {name for name in features if name not in self.coded}
        numeric |= {layout.target} if layout.kind == "regression" else set()
        wanted = [*features, table.require(layout.target, "data.target")]
        for block in table.blocks(wanted, numeric, layout.missing):
            matrix, row_keys = self._block(block[:-1], len(keys))
            self._add_target(block[-1], len(keys))
            numbers.add(matrix)
            keys.add(row_keys)
        self.numbers, self.keys = numbers.done(), keys.done()
        self.codes = {name: each.done() for name, each in self.coded.items()}

    def _block(self, cells: Sequence[pyarrow.Array], start: int) -> tuple[np.ndarray, np.ndarray]:
        """float64 `[b, F]`, categories left open, and uint64 `[b]` keys."""
        matrix = np.empty((len(cells[0]), len(self.features)))
        texts, numeric = [], []
        for at, (name, column) in enumerate(zip(self.features, cells)):
            if name in self.coded:
                texts.append(texts_of(column))
                self.coded[name].add(texts[-1])
            else:
                matrix[:, at] = self._numbers(column, name, start)
                numeric.append(at)
        return matrix, _keys(matrix, numeric, [each.to_pylist() for each in texts])

    def _add_target(self, cells: pyarrow.Array, start: int) -> None:
        if self.layout.kind == "classification":
            return self.target.add(texts_of(cells))
        values = self._numbers(cells, self.layout.target, start)
        if np.isnan(values).any():
            at = start + int(np.flatnonzero(np.isnan(values))[0])
            raise DataError(f"{self.table.where(at)}, column {self.layout.target}: the target is missing")
        return self.values.add(values)

    def _numbers(self, cells: pyarrow.Array, name: str, start: int) -> np.ndarray:
        """float64: the numbers of a column, NaN where one is missing; DataError says where another text is."""
        import pyarrow
        import pyarrow.compute

        if not is_text(cells):
            values = _typed_numbers(cells, f"{self.table.path}, column {name}")
        else:
            missing = pyarrow.array(self.layout.missing, pyarrow.string())
            absent = pyarrow.compute.is_in(cells, value_set=missing)
            try:
                known = pyarrow.compute.if_else(absent, None, cells)
                values = known.cast(pyarrow.float64()).to_numpy(zero_copy_only=False)
            except pyarrow.ArrowInvalid:
                values = self._one_by_one(cells.to_pylist(), name, start)
        if np.isinf(values).any():
            at = int(np.flatnonzero(np.isinf(values))[0])
            raise DataError(f"{self.table.where(start + at)}, column {name}: {str(cells[at])!r} is not finite")
        return np.asarray(values, np.float64)

    def _one_by_one(self, cells: Sequence[str], name: str, start: int) -> np.ndarray:
        """The numbers of a column as Python reads them."""
        values = []
        for at, cell in enumerate(cells, start):
            try:
                values.append(np.nan if cell in self.layout.missing else float(cell))
            except ValueError:
                advice = f"; list {name} under data.categorical, or its mark for absent values under data.missing"
                hint = "" if name == self.layout.target else advice
                raise DataError(f"{self.table.where(at)}, column {name}: {cell!r} is no number{hint}") from None
        return np.array(values, np.float64)

    def split(self, categories: Mapping[str, Mapping[str, float]], classes: tuple[str, ...]) -> Split:
        places = {name: at for at, name in enumerate(self.features)}
        for name, codes in self.codes.items():
            at, values = places[name], self.coded[name].values(categories[name])
            for part in spans(len(codes)):
                self.numbers[part, at] = values[codes[part]]
        if self.layout.kind == "classification":
            return Split({"features": self.numbers, "label": self._labels(classes)}, self.keys)
        return Split({"features": self.numbers, "value": self.values.done()}, self.keys)

    def _labels(self, classes: tuple[str, ...]) -> np.ndarray:
        codes, known_as = self.target.done(), {name: float(code) for code, name in enumerate(classes)}
        values = self.target.values(known_as)
        stopped = self.target.values({f"{name}.": known_as[name] for name in classes})
        if np.isnan(values).any() and not np.isnan(stopped).any():
            first = next(iter(self.target.names))
            warnings.warn(
                f"{self.table.path}: its classes end with a full stop ({first!r}), which is left out", stacklevel=5
            )
            values = stopped
        labels = Rows(np.int64)
        for part in spans(len(codes)):
            found = values[codes[part]]
            if np.isnan(found).any():
                at = part.start + int(np.flatnonzero(np.isnan(found))[0])
                raise DataError(
                    f"{self.table.where(at)}, column {self.layout.target}: {self.target.text(int(codes[at]))!r} is no "
                    f"class; expected {', '.join(classes[:10])}"
                )
            labels.add(found.astype(np.int64))
        return labels.done()


def is_text(cells: pyarrow.Array) -> bool:
    """Whether a column holds texts."""
    import pyarrow

    return any(kind(cells.type) for kind in (pyarrow.types.is_string, pyarrow.types.is_large_string))


def texts_of(cells: pyarrow.Array) -> pyarrow.StringArray:
    """A column as texts: what is absent as an empty one, numbers as pyarrow writes them.

    >>> import pyarrow
    >>> texts_of(pyarrow.array([1, None])).to_pylist()
    ['1', '']
    """
    import pyarrow.compute

    texts = cells if is_text(cells) and not cells.null_count else pyarrow.compute.fill_null(_as_texts(cells), "")
    return texts


def _as_texts(cells: pyarrow.Array) -> pyarrow.StringArray:
    import pyarrow

    return cells.cast(pyarrow.string())


def _typed_numbers(cells: pyarrow.Array, where: str) -> np.ndarray:
    """float64 of a column of numbers or truths, NaN where one is absent."""
    import pyarrow

    kinds = (pyarrow.types.is_integer, pyarrow.types.is_floating, pyarrow.types.is_decimal, pyarrow.types.is_boolean)
    if not any(kind(cells.type) for kind in (*kinds, pyarrow.types.is_null)):
        raise DataError(f"{where}: it holds {cells.type} and no numbers; list it under data.categorical or data.drop")
    plain = cells.cast(pyarrow.int8()) if pyarrow.types.is_boolean(cells.type) else cells
    return np.asarray(plain.cast(pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)


def _keys(matrix: np.ndarray, numeric: Sequence[int], texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Keys from the numbers and the category texts, so that another coding of categories changes none of them."""
    numbers = matrix[:, numeric] + 0.0
    numbers[np.isnan(numbers)] = np.nan
    numbers = np.ascontiguousarray(numbers, "<f8")
    width = numbers.shape[1] * numbers.itemsize
    rows: list[bytes] = numbers.view(f"V{width}").reshape(-1).tolist() if width else [b""] * len(numbers)
    if texts:
        rows = [row + "\x1f".join(cells).encode() for row, cells in zip(rows, zip(*texts))]
    return content_keys(rows)


def _class_names(train: Cells, texts: Iterable[str], layout: Layout) -> tuple[str, ...]:
    names = _sorted_texts(text for text in texts if text not in layout.missing)
    if len(names) < 2:
        raise DataError(f"{train.path}, column {layout.target}: {len(names)} classes; expected two or more")
    if len(names) > 1000:
        raise DataError(f"{train.path}, column {layout.target}: {len(names)} classes; is it data.kind=regression?")
    return names


def _category_values(cells: Iterable[str], layout: Layout) -> dict[str, float]:
    texts = _sorted_texts(cell for cell in cells if cell not in layout.missing)
    numeric = all(_is_number(text) for text in texts)
    return {text: float(text) if numeric else float(code) for code, text in enumerate(texts)}


def _sorted_texts(cells: Iterable[str]) -> tuple[str, ...]:
    texts = set(cells)
    if all(_is_number(text) for text in texts):
        return tuple(sorted(texts, key=lambda text: (float(text), text)))
    return tuple(sorted(texts))


def _is_number(cell: str) -> bool:
    try:
        return np.isfinite(float(cell)).item()
    except ValueError:
        return False
