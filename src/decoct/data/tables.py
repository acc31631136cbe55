"""Tables of text cells turned into numeric columns."""

from __future__ import annotations

import csv
import io
import itertools
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from decoct.data.base import Split
from decoct.data.files import read_bytes, read_text
from decoct.data.hashing import content_keys
from decoct.errors import DataError, RecipeError, did_you_mean

if TYPE_CHECKING:
    import pyarrow

MISSING = ("", "NA", "NaN", "nan", "?")
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Table:
    """Columns of cells as a file gives them, text without blanks around it."""

    path: Path
    names: tuple[str, ...]
    columns: tuple[pyarrow.StringArray, ...]
    delimiter: str = ","
    header: bool = True

    def cells(self, name: str, setting: str) -> pyarrow.StringArray:
        """The cells of one column; RecipeError names the nearest where the table lacks it."""
        if name not in self._places:
            raise RecipeError(f"{setting}: {self.path.name} has no column {name!r}; {did_you_mean(name, self.names)}")
        return self.columns[self._places[name]]

    def column(self, name: str, setting: str) -> list[str]:
        """The cells of one column as a list."""
        found: list[str] = self.cells(name, setting).to_pylist()
        return found

    def line(self, row: int) -> int:
        """The line of the file on which a row ends, counted from 1."""
        _, number = next(itertools.islice(_rows(self.path, self.delimiter), row + self.header, None))
        return number

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: at for at, name in enumerate(self.names)}


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
    """A delimited file, gzip or not, with quoted cells; without header the columns are called "0", "1", ..."""
    content = read_bytes(path).removeprefix(BOM)
    columns = _by_arrow(content, delimiter) or _by_rows(path, delimiter)
    del content
    heads = [str(column[0]).strip() for column in columns]
    names = tuple(heads) if header else tuple(map(str, range(len(columns))))
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise DataError(f"{path}: two columns are called {twice!r}")
    columns = [_trimmed(column[1:] if header else column) for column in columns]
    if not len(columns[0]):
        raise DataError(f"{path}: a header and no rows")
    return Table(path, names, tuple(columns), delimiter, header)


def _by_arrow(content: bytes, delimiter: str) -> list[Any] | None:
    """The columns as pyarrow reads them, which does so as the csv module does; None where it refuses the file."""
    import pyarrow
    import pyarrow.csv

    lines = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", errors="replace", newline="")
    try:
        first = next((row for row in csv.reader(lines, delimiter=delimiter) if row), None)
    except csv.Error:
        return None
    if first is None:
        return None
    names = list(map(str, range(len(first))))
    try:
        table = pyarrow.csv.read_csv(
            pyarrow.BufferReader(content),
            read_options=pyarrow.csv.ReadOptions(column_names=names),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pyarrow.string())),
        )
    except (pyarrow.ArrowInvalid, ValueError):
        return None
    return [each.combine_chunks() for each in table.columns] if len(table) else None


def _by_rows(path: Path, delimiter: str) -> list[Any]:
    """The columns row by row, for files that pyarrow refuses: read all the same, or refused by line."""
    import pyarrow

    rows: list[list[str]] = []
    for row, line in _rows(path, delimiter):
        if rows and len(row) != len(rows[0]):
            raise DataError(f"{path}, line {line}: {len(row)} cells, expected {len(rows[0])} (delimiter {delimiter!r})")
        rows.append(row)
    if not rows:
        raise DataError(f"{path}: the file is empty")
    return [pyarrow.array(column, pyarrow.string()) for column in zip(*rows)]


def _rows(path: Path, delimiter: str) -> Iterator[tuple[list[str], int]]:
    """The rows that are not blank, each with the line on which it ends."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    try:
        for row in reader:
            if row:
                yield row, reader.line_num
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from None


def _trimmed(cells: Any) -> Any:
    import pyarrow.compute

    return pyarrow.compute.utf8_trim_whitespace(cells)


def make_columns(tables: Mapping[str, Table], layout: Layout) -> Columns:
    """Splits with `features` float64 (NaN = missing) and `label` or `value`.

    A categorical column holds numbers if all of its cells are numbers, else the rank of its text among all of its
    texts; `categories` maps each text to its number.
    """
    train = tables["train"]
    train.column(layout.target, "data.target")
    for setting, names in (("data.categorical", layout.categorical), ("data.drop", layout.drop)):
        for name in names:
            train.column(name, setting)
    left_out = {layout.target, *layout.drop}
    features = tuple(name for name in train.names if name not in left_out)
    if not features:
        raise RecipeError(f"data.drop: {train.path.name} has no column left beside the target {layout.target!r}")
    categories = {
        name: _category_values(_texts_of(tables.values(), name), layout)
        for name in features
        if name in layout.categorical
    }
    classes = layout.classes or (_class_names(train, layout) if layout.kind == "classification" else ())
    splits = {name: _split(table, layout, features, categories, classes) for name, table in tables.items()}
    return Columns(splits, classes, features, categories)


def _split(
    table: Table,
    layout: Layout,
    features: tuple[str, ...],
    categories: Mapping[str, Mapping[str, float]],
    classes: tuple[str, ...],
) -> Split:
    columns = [
        _coded(table.cells(name, "data"), categories[name]) if name in categories else _numbers(table, name, layout)
        for name in features
    ]
    matrix = np.stack(columns, axis=1)
    texts = [table.column(name, "data") for name in categories]
    keys = _keys(matrix, features, categories, texts)
    if layout.kind == "classification":
        return Split({"features": matrix, "label": _labels(table, layout, classes)}, keys)
    values = _numbers(table, layout.target, layout)
    if np.isnan(values).any():
        line = table.line(int(np.flatnonzero(np.isnan(values))[0]))
        raise DataError(f"{table.path}, line {line}, column {layout.target}: the target is missing")
    return Split({"features": matrix, "value": values}, keys)


def _texts_of(tables: Iterable[Table], name: str) -> set[str]:
    """The different texts in a column of all tables."""
    return {text for each in tables for text in each.cells(name, "data").unique().to_pylist()}


def _coded(cells: pyarrow.StringArray, codes: Mapping[str, float]) -> np.ndarray:
    """float64: the code of each cell, NaN where it has none."""
    found = cells.dictionary_encode()
    values = np.array([codes.get(text, np.nan) for text in found.dictionary.to_pylist()], np.float64)
    return values[found.indices.to_numpy()]


def _keys(
    matrix: np.ndarray,
    features: Sequence[str],
    categories: Mapping[str, Mapping[str, float]],
    texts: Sequence[Sequence[str]],
) -> np.ndarray:
    """Keys from the numbers and the category texts, so that another coding of categories changes none of them."""
    numeric = [at for at, name in enumerate(features) if name not in categories]
    numbers = matrix[:, numeric] + 0.0
    numbers[np.isnan(numbers)] = np.nan
    numbers = np.ascontiguousarray(numbers, "<f8")
    width, content = numbers.shape[1] * numbers.itemsize, numbers.reshape(-1).view(np.uint8).data
    rows = (content[at : at + width] for at in range(0, len(numbers) * width, width)) if width else ()
    if texts:
        joined = ("\x1f".join(cells).encode() for cells in zip(*texts))
        return content_keys(bytes(row) + text for row, text in zip(rows if width else itertools.repeat(b""), joined))
    return content_keys(rows)


def _numbers(table: Table, name: str, layout: Layout) -> np.ndarray:
    """float64: the numbers of a column, NaN where one is missing; DataError names the line of another text."""
    import pyarrow
    import pyarrow.compute

    cells = table.cells(name, "data")
    absent = pyarrow.compute.is_in(cells, value_set=pyarrow.array(layout.missing, pyarrow.string()))
    try:
        values = pyarrow.compute.if_else(absent, None, cells).cast(pyarrow.float64()).to_numpy(zero_copy_only=False)
    except pyarrow.ArrowInvalid:
        values = _one_by_one(table, name, layout)
    if np.isinf(values).any():
        at = int(np.flatnonzero(np.isinf(values))[0])
        raise DataError(f"{table.path}, line {table.line(at)}, column {name}: {str(cells[at])!r} is not finite")
    return np.asarray(values, np.float64)


def _one_by_one(table: Table, name: str, layout: Layout) -> np.ndarray:
    """The numbers of a column as Python reads them."""
    values = []
    for row, cell in enumerate(table.column(name, "data")):
        try:
            values.append(np.nan if cell in layout.missing else float(cell))
        except ValueError:
            hint = (
                ""
                if name == layout.target
                else f"; list {name} under data.categorical, or its mark for absent values under data.missing"
            )
            raise DataError(
                f"{table.path}, line {table.line(row)}, column {name}: {cell!r} is no number{hint}"
            ) from None
    return np.array(values, np.float64)


def _labels(table: Table, layout: Layout, classes: tuple[str, ...]) -> np.ndarray:
    cells = table.cells(layout.target, "data.target")
    known_as = {name: float(code) for code, name in enumerate(classes)}
    codes = _coded(cells, known_as)
    if (
        np.isnan(codes).any()
        and not np.isnan(stopped := _coded(cells, {f"{name}.": known_as[name] for name in classes})).any()
    ):
        warnings.warn(
            f"{table.path}: its classes end with a full stop ({str(cells[0])!r}), which is left out", stacklevel=4
        )
        codes = stopped
    if np.isnan(codes).any():
        at = int(np.flatnonzero(np.isnan(codes))[0])
        known = ", ".join(classes[:10])
        raise DataError(
            f"{table.path}, line {table.line(at)}, column {layout.target}: {str(cells[at])!r} is no class; "
            f"expected {known}"
        )
    return codes.astype(np.int64)


def _class_names(train: Table, layout: Layout) -> tuple[str, ...]:
    names = _sorted_texts(cell for cell in _texts_of([train], layout.target) if cell not in layout.missing)
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
