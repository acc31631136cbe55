"""Pictures in tar shards, in the layout of WebDataset."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import groupby, takewhile
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from decoct.data.base import Dataset, Split
from decoct.data.coded import Coded
from decoct.data.files import regular
from decoct.data.images import LARGEST_SIDE, SUFFIXES, Pictures, ValueRange
from decoct.data.labelled_pictures import whole
from decoct.data.mapped import Rows
from decoct.data.pixels import PictureFiles, Read, examined
from decoct.data.shards import Member, Place, Places, members_of, shard_files
from decoct.data.splits import files_by_split
from decoct.errors import DataError, RecipeError, did_you_mean

MOST_BYTES = 1 << 20
"""Of the member that holds a label."""
MOST_PICTURE = 1 << 29
"""Of the member that holds a picture."""


class WebDataset(PictureFiles):
    """Pictures in tar files (shards): members `KEY.jpg` and `KEY.cls` that follow each other are a sample.

    `path`: a shard, a folder of shards or a pattern (`train-{000000..000099}.tar`, `*.tar`); where folders or names
    say train, validation (valid, val, dev) and test, they are those splits, else all are for training. `target` is
    the ending of the label's member: a text (`cls`, `txt`) or JSON (`json`), of which `field` is taken. Classes are
    the labels of the training shards, in order; or `classes` names them by number, from 0. `image` is the ending of
    the pictures where a sample holds several. `size`, `channels`, `value_range`, `test` as of `image_folder`. Shards
    stay packed: pictures are read from their place in them when a batch asks. Other members are left out; shards that
    are damaged, compressed or hold links are refused. The layout is that of Aizman, Maltby, Breuel 2019.
    """

    use: ClassVar[str] = "webdataset"
    target: str = Field(default="cls", min_length=1)
    field: str = "label"
    classes: tuple[str, ...] = ()
    image: str | None = None
    size: int | None = Field(default=None, ge=1, le=LARGEST_SIDE)
    channels: Literal[1, 3] = 3
    test: float = Field(default=0.2, gt=0, lt=1)
    value_range: ValueRange = None

    def files(self) -> list[str]:
        return [] if self.path is None else [str(each) for files in self._shards().values() for each in files]

    def decoder(self) -> tuple[Read, Pictures]:
        return self._decoded, Pictures(self.channels, self.value_range)

    def open(self, *, offline: bool = False) -> Dataset:
        if self.path is None:
            raise RecipeError("data.path: missing; give a shard, the folder of the shards or a pattern")
        found = {split: _Shards(files, self) for split, files in self._shards().items()}
        classes = self.classes or _sorted(found["train"].labels.names)
        if len(classes) < 2:
            raise DataError(f"data.path={self.path}: one class alone ({', '.join(classes)}) in its training shards")
        pictures = Pictures(self.channels, self.value_range)
        splits = {name: self._read(each, classes, pictures) for name, each in found.items()}
        return whole(self, splits, classes, pictures, self.path, self.test)

    def label_of(self, content: bytes, where: str) -> str:
        """The label that a member holds."""
        try:
            text = content.decode("utf-8").strip()
            value = json.loads(text)[self.field] if self.target.rpartition(".")[2] == "json" else text
        except (ValueError, LookupError, TypeError, RecursionError):
            expected = f"a JSON object with {self.field!r}" if self.target.endswith("json") else "UTF-8 text"
            raise DataError(f"{where}: no label can be read; expected {expected}") from None
        if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
            raise DataError(f"{where}: label {value!r}; expected a text or a whole number")
        return str(value)

    def _shards(self) -> dict[str, list[Path]]:
        assert self.path is not None
        path = self.path.expanduser().absolute()
        if path.is_file():
            return {"train": [path]}
        fixed = takewhile(lambda part: not set(part) & set("{*?["), path.parts)
        return files_by_split(Path(*fixed), shard_files(path))

    def _read(self, found: _Shards, classes: tuple[str, ...], pictures: Pictures) -> Split:
        labels = found.numbered(classes, numbers=bool(self.classes))
        pixels = examined(found.places, self._decoded, pictures, "give data.size, to which all are brought")
        return Split({"image": pixels, "label": labels}, pixels.files.keys)

    def _decoded(self, path: str, pictures: Pictures) -> np.ndarray:
        assert isinstance(path, Place)
        content, where = path.read()
        return pictures.decoded(content, where, self.size)


class _Shards:
    """The samples of some shards: where their pictures are, and their labels."""

    def __init__(self, files: Sequence[Path], data: WebDataset) -> None:
        self.labels, rows = Coded(), Rows(np.int64, (3,))
        for number, path in enumerate(files):
            with regular(path).open("rb") as file:
                texts, own = [], []
                for key, members in groupby(members_of(path), key=lambda member: member.key):
                    sample = _sample(f"{path}: {key}", list(members), data)
                    if sample is None:
                        continue
                    picture, label = sample
                    for each, most in ((label, MOST_BYTES), (picture, MOST_PICTURE)):
                        if each.size > most:
                            raise DataError(f"{path}: {key}.{each.ending} holds {each.size:,} bytes; at most {most:,}")
                    file.seek(label.offset)
                    texts.append(data.label_of(file.read(label.size), f"{path}: {key}.{label.ending}"))
                    own.append((number, picture.offset, picture.size))
            self.labels.add(texts)
            rows.add(np.array(own, np.int64).reshape(-1, 3))
        if not len(rows):
            endings = data.image or ", ".join(sorted(each[1:] for each in SUFFIXES))
            raise DataError(f"{files[0]}: no sample of a picture ({endings}) and a label ({data.target}) in its shards")
        self.places = Places(list(map(str, files)), rows.done())

    def numbered(self, classes: Sequence[str], *, numbers: bool) -> np.ndarray:
        """int64 `[N]`; DataError names the sample whose label is no class. `numbers`: labels are numbers of classes."""
        known = {str(at) if numbers else name: float(at) for at, name in enumerate(classes)}
        codes, values = self.labels.done(), self.labels.values(known)
        if np.isnan(values).any():
            at = int(np.flatnonzero(np.isnan(values[codes]))[0])
            label = self.labels.text(int(codes[at]))
            advice = f"numbers from 0 to {len(classes) - 1}" if numbers else did_you_mean(label, classes)
            raise DataError(f"{self.places[at]}: the label of this sample is {label!r}; {advice}")
        found: np.ndarray = values.astype(np.int64)[codes]
        return found


def _sample(where: str, members: Sequence[Member], data: WebDataset) -> tuple[Member, Member] | None:
    """The picture and the label of a sample; None where it has neither."""
    wanted = {each[1:] for each in SUFFIXES} if data.image is None else {data.image.lower()}
    pictures = [each for each in members if each.ending in wanted]
    labels = [each for each in members if each.ending == data.target.lower()]
    if not pictures and not labels:
        return None
    if len(pictures) != 1 or len(labels) != 1:
        raise DataError(
            f"{where}: {len(pictures)} pictures ({', '.join(sorted(wanted))}) and {len(labels)} labels "
            f"({data.target}) in one sample, of {', '.join(each.ending for each in members)}; each has one of both "
            "(data.image, data.target)"
        )
    return pictures[0], labels[0]


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    """Labels in order: numbers by their size, others as texts."""
    texts = list(names)
    numbers = all(each.isascii() and each.isdigit() for each in texts)
    return tuple(sorted(texts, key=lambda text: (int(text), text) if numbers else (0, text)))
