"""Images listed in a table: a column of paths and one of classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from decoct.data.base import Dataset, Split
from decoct.data.files import present
from decoct.data.images import LARGEST_SIDE, SUFFIXES, Pictures, ValueRange
from decoct.data.labelled_pictures import whole
from decoct.data.pixels import PictureFiles, Read, examined
from decoct.data.splits import NAMES, split_named
from decoct.data.text_files import columns_of, parts_of
from decoct.errors import DataError, RecipeError, did_you_mean


class ImageTable(PictureFiles):
    """Images whose paths and classes stand in a CSV, TSV, JSON lines or Parquet file.

    `path`: the table, or a folder of tables whose names say train, validation (valid, val, dev) and test; `image` and
    `target` name its columns, `split` a column that says train, validation or test. Paths count from `root`, or from
    the table's own folder; `delimiter` is found by the header where it is left out. `size`, `channels`, `value_range`,
    `test` as of `image_folder`. Classes are the labels of the training rows, in order.
    """

    use: ClassVar[str] = "image_table"
    image: str = "image"
    target: str = "label"
    split: str | None = None
    root: Path | None = None
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    size: int | None = Field(default=None, ge=1, le=LARGEST_SIDE)
    channels: Literal[1, 3] = 3
    test: float = Field(default=0.2, gt=0, lt=1)
    value_range: ValueRange = None

    def files(self) -> list[str]:
        if self.path is None:
            return []
        tables = [str(each) for files in parts_of(present(self.path)).values() for each in files]
        return [*tables, *(picture for rows in self._rows().values() for picture, _ in rows)]

    def decoder(self) -> tuple[Read, Pictures]:
        return self._decoded, Pictures(self.channels, self.value_range)

    def open(self, *, offline: bool = False) -> Dataset:
        if self.path is None:
            raise RecipeError("data.path: missing; give the table of images")
        found = self._rows()
        if "train" not in found:
            raise DataError(f"{self.path}: no row for training; column {self.split} says {', '.join(found)}")
        classes = tuple(sorted({label for _, label in found["train"]}))
        if len(classes) < 2:
            raise DataError(f"{self.path}, column {self.target}: one class alone ({', '.join(classes)})")
        pictures = Pictures(self.channels, self.value_range)
        splits = {name: self._read(found[name], classes, pictures) for name in NAMES if name in found}
        return whole(self, splits, classes, pictures, self.path, self.test)

    def _rows(self) -> dict[str, list[tuple[str, str]]]:
        """Path and label of each row, by split, in the table's order."""
        assert self.path is not None
        found: dict[str, list[tuple[str, str]]] = {}
        for own, tables in parts_of(present(self.path)).items():
            for table in tables:
                for split, picture, label in self._of(table, own):
                    found.setdefault(split, []).append((picture, label))
        return found

    def _of(self, table: Path, own: str) -> Iterator[tuple[str, str, str]]:
        wanted = {"data.image": self.image, "data.target": self.target}
        wanted |= {} if self.split is None else {"data.split": self.split}
        root = (table.parent if self.root is None else self.root.expanduser()).absolute()
        for number, row in enumerate(columns_of(table, wanted, self.delimiter), 1):
            name, label, *said = ("" if each is None else str(each).strip() for each in row)
            if not name or not label:
                what = self.target if name else self.image
                raise DataError(f"{table}, row {number}: {what} is empty; fill it in, or take the row out")
            split = split_named(said[0]) if said else own
            if split is None:
                raise DataError(f"{table}, row {number}: {self.split} is {said[0]!r}; say train, validation or test")
            picture = root / name
            if not picture.is_file():
                told = "paths count from data.root, or from the table's folder"
                raise DataError(f"{table}, row {number}: {picture} is missing; {told}")
            yield split, str(picture), label

    def _read(self, rows: list[tuple[str, str]], classes: tuple[str, ...], pictures: Pictures) -> Split:
        number = {name: place for place, name in enumerate(classes)}
        for picture, label in rows:
            if label not in number:
                raise DataError(f"{self.path}: {picture} is of class {label!r}; {did_you_mean(label, classes)}")
        labels = np.asarray([number[label] for _, label in rows], np.int64)
        files = [picture for picture, _ in rows]
        pixels = examined(files, self._decoded, pictures, "give data.size, to which all are brought")
        return Split({"image": pixels, "label": labels}, pixels.files.keys)

    def _decoded(self, path: str, pictures: Pictures) -> np.ndarray:
        return pictures.decoded(Path(path), path, self.size)


def is_picture(text: str) -> bool:
    """Whether a cell names a picture by its ending.

    >>> is_picture("a/b.JPG"), is_picture("b.txt")
    (True, False)
    """
    return Path(text).suffix.lower() in SUFFIXES
