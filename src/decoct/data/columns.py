"""Columns of splits as files of the index: arrays are mapped into memory, texts cut out of one, pictures decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from decoct.data.base import Data, Split
from decoct.data.decoded import keep
from decoct.data.decoded import kept as decoded_at
from decoct.data.pixels import Files, PictureFiles, Pixels
from decoct.data.shards import Places
from decoct.data.stored_texts import StoredTexts
from decoct.errors import IntegrityError

MAPPED = 1 << 16
"""Files of more bytes are mapped."""
BESIDE = ("keys", "labelled", "group")


@dataclass(frozen=True)
class Kept:
    """What is known of a data set beside its columns."""

    fingerprint: str
    classes: list[str]
    features: list[str]
    info: dict[str, Any]
    warnings: list[str]
    splits: dict[str, dict[str, Any]]

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def kept_split(split: Split) -> dict[str, Any]:
    """The form of each column of a split; TypeError for one that the index does not hold."""
    forms = {name: _form(column) for name, column in split.columns.items()}
    shape = next((list(each.files.shape) for each in split.columns.values() if isinstance(each, Pixels)), [])
    return {"columns": forms, "beside": [name for name in BESIDE if getattr(split, name) is not None], "shape": shape}


def write_split(folder: Path, name: str, split: Split, files: Sequence[str]) -> None:
    """Writes the columns of a split; pictures as their place among the `files` of the data set."""
    for own in BESIDE:
        if getattr(split, own) is not None:
            _save(folder, f"{name}.{own}", getattr(split, own))
    for own, column in split.columns.items():
        place = f"{name}.columns.{own}"
        if isinstance(column, Pixels):
            _save(folder, place, _places(column, files))
            _save(folder, f"{place}.sums", column.files.sums[column.places])
        elif isinstance(column, np.ndarray):
            _save(folder, place, column)
        else:
            texts = column if isinstance(column, StoredTexts) else StoredTexts.of(column)
            _save(folder, place, texts.content)
            _save(folder, f"{place}.ends", texts.ends)


def read_split(folder: Path, name: str, kept: dict[str, Any], data: Data, files: Sequence[str], decoded: Path) -> Split:
    """The split that was written; its arrays are read when they are used. `decoded`: where `write_decoded` wrote."""
    beside = {own: _load(folder, f"{name}.{own}") for own in kept["beside"]}
    columns: dict[str, Any] = {}
    for own, form in kept["columns"].items():
        place = f"{name}.columns.{own}"
        columns[own] = _load(folder, place)
        if form == "texts":
            columns[own] = StoredTexts(columns[own], _load(folder, f"{place}.ends"), text_home(folder, name, own))
        elif form == "pixels":
            columns[own] = _pixels(
                decoded / f"{name}.{own}",
                columns[own],
                _load(folder, f"{place}.sums"),
                beside["keys"],
                kept,
                data,
                files,
            )
        if len(columns[own]) != len(beside["keys"]):
            raise IntegrityError(f"{folder}: column {own} has not one entry for each sample")
    return Split(columns, **beside)


def write_decoded(folder: Path, name: str, split: Split) -> None:
    """Writes the pixels of a split as they are once decoded, where they are many and the disk has room."""
    for own, column in split.columns.items():
        if isinstance(column, Pixels) and column.files.decoded is not None:
            keep(folder / f"{name}.{own}", len(column), column.files.shape, column)


def _pixels(
    decoded: Path,
    places: np.ndarray,
    sums: np.ndarray,
    keys: np.ndarray,
    kept: dict[str, Any],
    data: Data,
    files: Sequence[str],
) -> Pixels:
    if not isinstance(data, PictureFiles):
        raise IntegrityError(f"{data.use} has no pictures")
    read, pictures = data.decoder()
    paths = Places(files, places) if places.ndim == 2 else [files[at] for at in places.tolist()]
    shape = tuple(kept["shape"])
    own = Files(paths, read, pictures, shape, keys, sums, decoded=decoded_at(decoded, len(paths), shape))
    return Pixels(own.keeping(), np.arange(len(paths)))


def text_home(folder: Path, name: str, own: str) -> Path:
    """The folder of what is made of a column of texts: outside of the sealed one, as it comes later."""
    return folder.with_name(f"{folder.name}.tokens") / f"{name}.{own}"


def at_home(split: Split, folder: Path, name: str) -> Split:
    """The split, whose texts know where the index holds them."""
    for own, column in split.columns.items():
        if isinstance(column, StoredTexts):
            column.home = text_home(folder, name, own)
    return split


def _places(column: Pixels, files: Sequence[str]) -> np.ndarray:
    """int64 `[N]`: which of the files holds each picture; of shards `[N, 3]`, and where in it."""
    if isinstance(column.files.paths, Places):
        return column.files.paths.among(files, column.places)
    number = {path: at for at, path in enumerate(files)}
    return np.array([number[column.files.paths[at]] for at in column.places.tolist()], np.int64)


def _form(column: Any) -> str:
    if isinstance(column, Pixels):
        return "pixels"
    if isinstance(column, np.ndarray) and column.dtype != object:
        return "array"
    if isinstance(column, StoredTexts):
        return "texts"
    if isinstance(column, Sequence) and all(isinstance(each, str) for each in column):
        return "texts"
    raise TypeError(f"a column of {type(column).__name__}")


def _save(folder: Path, name: str, values: np.ndarray) -> None:
    np.save(folder / f"{name}.npy", values, allow_pickle=False)


def _load(folder: Path, name: str) -> np.ndarray:
    """An array of a file; a large one mapped into memory, so that what is written to it stays in this process."""
    path = folder / f"{name}.npy"
    large = path.stat().st_size > MAPPED
    return np.asarray(np.load(path, mmap_mode="c" if large else None, allow_pickle=False))
