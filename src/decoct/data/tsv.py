"""Texts with a label, one a line, columns apart by tabs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from decoct.data.base import Data, Dataset, Split
from decoct.data.files import present, read_text
from decoct.data.hashing import text_keys
from decoct.data.splits import NAMES, assemble, hold_out
from decoct.errors import DataError, RecipeError


class TSV(Data):
    """Texts and labels in tab-separated files without quoting.

    `path`: one file, or a folder of `train.tsv`, `test.tsv` and one of `dev.tsv`, `validation.tsv`. `text` and `label`
    are column numbers from 0; `header` skips the first line; `test` is the fraction held out by key where there is no
    test file. Classes are the labels of the training file, in order. `delimiter`: what stands between columns.
    """

    use: ClassVar[str] = "tsv"
    text: int = Field(default=0, ge=0)
    label: int = Field(default=1, ge=0)
    header: bool = False
    delimiter: str = Field(default="\t", min_length=1)
    test: float = Field(default=0.2, gt=0, lt=1)

    def files(self) -> list[str]:
        return [] if self.path is None else list(map(str, find_files(present(self.path)).values()))

    def open(self, *, offline: bool = False) -> Dataset:
        if self.path is None:
            raise RecipeError("data.path: missing; give the file, or the folder of train.tsv and test.tsv")
        files = find_files(present(self.path))
        rows = {
            name: read_rows(file, self.text, self.label, header=self.header, delimiter=self.delimiter)
            for name, file in files.items()
        }
        classes = tuple(sorted({label for _, label, _ in rows["train"]}))
        splits = {
            name: text_split(files[name], each, {c: i for i, c in enumerate(classes)}) for name, each in rows.items()
        }
        if "test" not in splits:
            splits["train"], splits["test"] = hold_out(splits["train"], self.test, "test")
        return assemble(self, splits, classes=classes)


def find_files(path: Path) -> dict[str, Path]:
    """The files of the splits in a folder, or one file as the training split."""
    if path.is_file():
        return {"train": path}
    found = {}
    for split, names in NAMES.items():
        for name in reversed(names):
            for file in (path / f"{name}.tsv.gz", path / f"{name}.tsv"):
                if file.is_file():
                    found[split] = file
    if "train" not in found:
        raise DataError(f"data.path={path}: no train.tsv there")
    return found


def read_rows(
    path: Path, text: int, label: int, *, header: bool = False, delimiter: str = "\t"
) -> list[tuple[str, str, int]]:
    """`(text, label, line number)` of each line that is not blank; DataError names a line with too few columns."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line.strip() or (header and number == 1):
            continue
        cells = line.split(delimiter)
        if len(cells) <= max(text, label):
            raise DataError(f"{path}, line {number}: {len(cells)} columns, expected at least {max(text, label) + 1}")
        rows.append((cells[text], cells[label].strip(), number))
    if not rows:
        raise DataError(f"{path}: the file holds no lines")
    return rows


def text_split(path: Path, rows: Sequence[tuple[str, str, int]], codes: Mapping[str, int]) -> Split:
    """A split of texts; DataError names the line of a label that is not among `codes`."""
    for _, label, number in rows:
        if label not in codes:
            raise DataError(f"{path}, line {number}: label {label!r}; expected {', '.join(list(codes)[:10])}")
    texts = [text for text, _, _ in rows]
    return Split({"text": texts, "label": np.array([codes[label] for _, label, _ in rows], np.int64)}, text_keys(texts))
