"""Tables of text cells turned into numeric columns."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from decoct.data.base import Split
from decoct.data.files import read_text
from decoct.data.hashing import content_keys
from decoct.errors import DataError, RecipeError, did_you_mean

MISSING = ("", "NA", "NaN", "nan", "?")


@dataclass(frozen=True)
class Table:
    """Rows of cells as a file gives them; `lines` are the rows' line numbers."""

    path: Path
    names: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]

    def column(self, name: str, setting: str) -> list[str]:
        """The cells of one column; RecipeError names the nearest where the table lacks it."""
        if name not in self._places:
            raise RecipeError(f"{setting}: {self.path.name} has no column {name!r}; {did_you_mean(name, self.names)}")
        at = self._places[name]
        return [row[at] for row in self.rows]

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
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    rows, lines = [], []
    try:
        for row in reader:
            if row:
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from None
    if not rows:
        raise DataError(f"{path}: the file is empty")
    names = tuple(rows[0]) if header else tuple(map(str, range(len(rows[0]))))
    if header:
        rows, lines = rows[1:], lines[1:]
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise DataError(f"{path}: two columns are called {twice!r}")
    for row, line in zip(rows, lines):
        if len(row) != len(names):
            raise DataError(f"{path}, line {line}: {len(row)} cells, expected {len(names)} (delimiter {delimiter!r})")
    if not rows:
        raise DataError(f"{path}: a header and no rows")
    return Table(path, names, rows, lines)


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
        name: _category_values([cell for t in tables.values() for cell in t.column(name, "data.categorical")], layout)
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
    columns = []
    for name in features:
        cells = table.column(name, "data")
        if name in categories:
            codes = categories[name]
            columns.append(np.array([codes.get(cell, np.nan) for cell in cells], np.float64))
        else:
            columns.append(_numbers(table, name, cells, layout))
    matrix = np.stack(columns, axis=1)
    texts = [table.column(name, "data") for name in categories]
    keys = _keys(matrix, features, categories, texts)
    cells = table.column(layout.target, "data.target")
    if layout.kind == "classification":
        return Split({"features": matrix, "label": _labels(table, layout, cells, classes)}, keys)
    values = _numbers(table, layout.target, cells, layout)
    if np.isnan(values).any():
        line = table.lines[int(np.flatnonzero(np.isnan(values))[0])]
        raise DataError(f"{table.path}, line {line}, column {layout.target}: the target is missing")
    return Split({"features": matrix, "value": values}, keys)


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
    rows = [row.tobytes() for row in numbers]
    if texts:
        rows = [row + "\x1f".join(cells).encode() for row, cells in zip(rows, zip(*texts))]
    return content_keys(rows)


def _numbers(table: Table, name: str, cells: Sequence[str], layout: Layout) -> np.ndarray:
    try:
        values = np.array([np.nan if cell in layout.missing else float(cell) for cell in cells], np.float64)
    except ValueError:
        line, cell = next(
            (line, cell)
            for line, cell in zip(table.lines, cells)
            if cell not in layout.missing and not _is_number(cell)
        )
        hint = (
            ""
            if name == layout.target
            else f"; list {name} under data.categorical, or its mark for absent values under data.missing"
        )
        raise DataError(f"{table.path}, line {line}, column {name}: {cell!r} is no number{hint}") from None
    if np.isinf(values).any():
        at = int(np.flatnonzero(np.isinf(values))[0])
        raise DataError(f"{table.path}, line {table.lines[at]}, column {name}: {cells[at]!r} is not finite")
    return values


def _labels(table: Table, layout: Layout, cells: Sequence[str], classes: tuple[str, ...]) -> np.ndarray:
    codes = {name: code for code, name in enumerate(classes)}
    for cell, line in zip(cells, table.lines):
        if cell not in codes:
            known = ", ".join(classes[:10])
            raise DataError(
                f"{table.path}, line {line}, column {layout.target}: {cell!r} is no class; expected {known}"
            )
    return np.array([codes[cell] for cell in cells], np.int64)


def _class_names(train: Table, layout: Layout) -> tuple[str, ...]:
    names = _sorted_texts(cell for cell in train.column(layout.target, "data.target") if cell not in layout.missing)
    if len(names) < 2:
        raise DataError(f"{train.path}, column {layout.target}: {len(names)} classes; expected two or more")
    if len(names) > 1000:
        raise DataError(f"{train.path}, column {layout.target}: {len(names)} classes; is it data.kind=regression?")
    return names


def _category_values(cells: Sequence[str], layout: Layout) -> dict[str, float]:
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
