"""Texts with a label in tables of any kind: CSV, TSV, JSON lines, Parquet."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from decoct.data.base import Data, Dataset
from decoct.data.cells import Cells, Delimited
from decoct.data.files import open_text, present, walked_names
from decoct.data.labelled_texts import LabelledTexts
from decoct.data.parquet import ParquetCells
from decoct.data.splits import assemble, files_by_split, hold_out, split_named
from decoct.errors import DataError, RecipeError, did_you_mean

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
DELIMITERS = ",;\t|"


class TextFiles(Data):
    """Texts and labels by column name, in CSV or TSV with quoting, JSON lines or Parquet; gzip or not where text.

    `path`: one file, or a folder of files whose names say train, validation (valid, val, dev) and test; of Parquet
    several may be parts of one split (`train-00000-of-00004.parquet`), and without such names all are for training.
    `text` and `target` name the columns; `delimiter` is found by the header where it is left out. `test` is the
    fraction held out by key where there is no test file. Classes are the labels of the training file, in order.
    """

    use: ClassVar[str] = "text_files"
    text: str = "text"
    target: str = "label"
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    test: float = Field(default=0.2, gt=0, lt=1)

    def files(self) -> list[str]:
        found = {} if self.path is None else parts_of(present(self.path))
        return [str(each) for files in found.values() for each in files]

    def open(self, *, offline: bool = False) -> Dataset:
        if self.path is None:
            raise RecipeError("data.path: missing; give the file, or the folder of train and test files")
        files = parts_of(present(self.path))
        read = {name: LabelledTexts(self._rows(each)) for name, each in files.items()}
        classes = tuple(sorted(read["train"].labels.names))
        if len(classes) < 2:
            raise DataError(f"{files['train'][0]}, column {self.target}: one class alone ({', '.join(classes)})")
        splits = {
            name: each.split(classes, functools.partial(_stray, files[name][0], classes)) for name, each in read.items()
        }
        if "test" not in splits:
            splits["train"], splits["test"] = hold_out(splits["train"], self.test, "test")
        return assemble(self, splits, classes=classes, info={"target": self.target})

    def _rows(self, paths: Sequence[Path]) -> Iterator[tuple[str, str, int]]:
        wanted = {"data.text": self.text, "data.target": self.target}
        rows = (row for path in paths for row in columns_of(path, wanted, self.delimiter))
        for number, (text, label) in enumerate(rows, 1):
            if text is None or label in (None, ""):
                what = self.text if text is None else self.target
                raise DataError(f"{paths[0]}, row {number}: {what} is empty; fill it in, or take the row out")
            yield str(text), str(label).strip(), number


def _stray(path: Path, classes: Sequence[str], row: int, label: str) -> DataError:
    return DataError(f"{path}, row {row}: label {label!r}; {did_you_mean(label, classes)}")


def parts_of(path: Path) -> dict[str, list[Path]]:
    """The files of each split: of Parquet all those of a folder, of other kinds one."""
    if path.is_dir() and (files := [each for each in walked_names(path) if each.endswith(".parquet")]):
        others = [each for each in sorted(path.iterdir()) if each.is_file() and ending(each) in ENDINGS[:-1]]
        if not others:
            return files_by_split(path, sorted(map(Path, files)))
    return {name: [each] for name, each in split_files(path).items()}


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


def columns_of(path: Path, wanted: dict[str, str], delimiter: str | None = None) -> Iterator[Sequence[Any]]:
    """Rows of columns by name, `{setting: column}`; RecipeError names the setting whose column is not there."""
    kind = ending(path)
    if kind in (".jsonl", ".ndjson"):
        yield from _of_lines(path, wanted)
        return
    table: Cells = ParquetCells([path]) if kind == ".parquet" else Delimited(path, delimiter or delimiter_of(path))
    names = [table.require(name, setting) for setting, name in wanted.items()]
    for block in table.blocks(names):
        yield from zip(*(each.to_pylist() for each in block))


def delimiter_of(path: Path) -> str:
    """The delimiter that a file's first line holds most of."""
    with open_text(path) as text:
        first = text.readline()
    return max(DELIMITERS, key=first.count)


def _of_lines(path: Path, wanted: dict[str, str]) -> Iterator[Sequence[Any]]:
    found = False
    with open_text(path, newline=None) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: no JSON object; one a line is expected")
            for setting, name in wanted.items():
                if name not in row:
                    near = did_you_mean(name, row)
                    raise RecipeError(f"{setting}: {path.name}, line {number}, has no {name!r}; {near}")
            found = True
            yield [row[name] for name in wanted.values()]
    if not found:
        raise DataError(f"{path}: the file holds no lines")
