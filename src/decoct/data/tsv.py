"""Texts with a label, one a line, columns apart by tabs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from decoct.data.base import Data, Dataset, Split
from decoct.data.files import open_text, present
from decoct.data.labelled_texts import LabelledTexts
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
        read = {
            name: LabelledTexts(read_rows(file, self.text, self.label, header=self.header, delimiter=self.delimiter))
            for name, file in files.items()
        }
        classes = tuple(sorted(read["train"].labels.names))
        splits = {name: text_split(files[name], each, classes) for name, each in read.items()}
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
) -> Iterator[tuple[str, str, int]]:
    """`(text, label, line number)` of each line that is not blank; DataError names a line with too few columns."""
    least, found = max(text, label) + 1, False
    with open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            line = line.removesuffix("\n").removesuffix("\r")
            if not line.strip() or (header and number == 1):
                continue
            cells = line.split(delimiter)
            if len(cells) < least:
                raise DataError(f"{path}, line {number}: {len(cells)} columns, expected at least {least}")
            found = True
            yield cells[text], cells[label].strip(), number
    if not found:
        raise DataError(f"{path}: the file holds no lines")


def text_split(path: Path, read: LabelledTexts, classes: Sequence[str]) -> Split:
    """A split of texts; DataError names the line of a label that is not among `classes`."""

    def stray(place: int, label: str) -> DataError:
        return DataError(f"{path}, line {place}: label {label!r}; expected {', '.join(classes[:10])}")

    return read.split(classes, stray)
