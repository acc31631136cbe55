"""Texts with a label in tables of any kind: CSV, TSV, JSON lines, Parquet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from decoct.data.base import Data, Dataset, Split
from decoct.data.files import present, read_text
from decoct.data.hashing import text_keys
from decoct.data.parquet import read_columns
from decoct.data.splits import assemble, hold_out, split_named
from decoct.data.tables import read_table
from decoct.errors import DataError, RecipeError, did_you_mean

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
DELIMITERS = ",;\t|"


class TextFiles(Data):
    """Texts and labels by column name, in CSV or TSV with quoting, JSON lines or Parquet; gzip or not where text.

    `path`: one file, or a folder of files whose names say train, validation (valid, val, dev) and test. `text`
    and `target` name the columns; `delimiter` is found by the header where it is left out. `test` is the fraction held
    out by key where there is no test file. Classes are the labels of the training file, in order.
    """

    use: ClassVar[str] = "text_files"
    text: str = "text"
    target: str = "label"
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    test: float = Field(default=0.2, gt=0, lt=1)

    def files(self) -> list[str]:
        return [] if self.path is None else list(map(str, split_files(present(self.path)).values()))

    def open(self, *, offline: bool = False) -> Dataset:
        if self.path is None:
            raise RecipeError("data.path: missing; give the file, or the folder of train and test files")
        files = split_files(present(self.path))
        read = {name: self._columns(file) for name, file in files.items()}
        classes = tuple(sorted(set(read["train"][1])))
        if len(classes) < 2:
            raise DataError(f"{files['train']}, column {self.target}: one class alone ({', '.join(classes)})")
        splits = {name: self._split(files[name], *columns, classes) for name, columns in read.items()}
        if "test" not in splits:
            splits["train"], splits["test"] = hold_out(splits["train"], self.test, "test")
        return assemble(self, splits, classes=classes, info={"target": self.target})

    def _columns(self, path: Path) -> tuple[list[str], list[str]]:
        texts, labels = columns_of(path, {"data.text": self.text, "data.target": self.target}, self.delimiter)
        for number, (text, label) in enumerate(zip(texts, labels), 1):
            if text is None or label in (None, ""):
                what = self.text if text is None else self.target
                raise DataError(f"{path}, row {number}: {what} is empty; fill it in, or take the row out")
        return [str(each) for each in texts], [str(each).strip() for each in labels]

    def _split(self, path: Path, texts: list[str], labels: list[str], classes: tuple[str, ...]) -> Split:
        codes = {name: number for number, name in enumerate(classes)}
        for number, label in enumerate(labels, 1):
            if label not in codes:
                raise DataError(f"{path}, row {number}: label {label!r}; {did_you_mean(label, classes)}")
        return Split({"text": texts, "label": np.array([codes[each] for each in labels], np.int64)}, text_keys(texts))


def split_files(path: Path) -> dict[str, Path]:
    """The file of each split in a folder, by the words of its name; one file is the training split."""
    if not path.is_dir():
        return {"train": path}
    return named_splits(path, [each for each in sorted(path.iterdir()) if each.is_file() and ending(each) in ENDINGS])


def named_splits(path: Path, files: Sequence[Path]) -> dict[str, Path]:
    """Files by the split that a word of their name says (`adult-test.csv`); one file is the training split.

    DataError lists the files where none is for training, or two are for one split.
    """
    found: dict[str, Path] = {}
    for file in files:
        split = split_named(file.name)
        if split is not None and split in found:
            raise DataError(f"{path}: {found[split].name} and {file.name} are both for {split}; keep one")
        if split is not None:
            found[split] = file
    if not found and len(files) == 1:
        return {"train": files[0]}
    if "train" not in found:
        listed = ", ".join(each.name for each in files[:10]) or "none"
        raise DataError(
            f"{path}: no file is called train ({', '.join(ENDINGS)}); there are: {listed}; give one of them"
        )
    return found


def ending(path: Path) -> str:
    """How a file's name ends, gzip or not.

    >>> ending(Path("a/train.csv.gz"))
    '.csv'
    """
    return Path(path.name.lower().removesuffix(".gz")).suffix


def columns_of(path: Path, wanted: dict[str, str], delimiter: str | None = None) -> list[list[Any]]:
    """Columns by name, `{setting: column}`; RecipeError names the setting whose column is not there."""
    kind = ending(path)
    if kind == ".parquet":
        return read_columns([path], list(wanted.values()))
    if kind in (".jsonl", ".ndjson"):
        return _of_lines(path, wanted)
    table = read_table(path, delimiter=delimiter or delimiter_of(path))
    return [list(table.column(name, setting)) for setting, name in wanted.items()]


def delimiter_of(path: Path) -> str:
    """The delimiter that a file's first line holds most of."""
    first = read_text(path).partition("\n")[0]
    return max(DELIMITERS, key=first.count)


def _of_lines(path: Path, wanted: dict[str, str]) -> list[list[Any]]:
    columns: list[list[Any]] = [[] for _ in wanted]
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: no JSON object; one a line is expected")
        for column, (setting, name) in zip(columns, wanted.items()):
            if name not in row:
                raise RecipeError(f"{setting}: {path.name}, line {number}, has no {name!r}; {did_you_mean(name, row)}")
            column.append(row[name])
    if not columns[0]:
        raise DataError(f"{path}: the file holds no lines")
    return columns
