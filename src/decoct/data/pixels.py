"""Pixels: the pictures of a data set as a column that is decoded when a batch asks for it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from decoct.data.base import Data
from decoct.data.decoded import Decoded, in_passing
from decoct.data.hashing import image_keys
from decoct.data.images import Pictures, other_size
from decoct.data.lazy import LazyColumn, in_threads
from decoct.errors import DataError

KEPT_BYTES = 32 << 20
"""Pictures that take no more than this once decoded are kept so."""
BLOCK, LOOKED_AT = 32, 512
"""Pictures decoded at a time where all of them are asked for, and where each is looked at and put away."""

Read = Callable[[str, Pictures], np.ndarray]
"""(path, Pictures) -> uint8 `[H, W, C]`."""


@dataclass(frozen=True)
class Files:
    """Picture files as they were when their data set was opened.

    `keys` uint64 `[N]` by `image_keys`; `sums` uint64 `[N, 2, C]`, the sum of the pixels of each channel and of their
    squares; `shape` (H, W, C), which all have. `kept`: decoded pixels, and which of them are there; `decoded`: a file
    that holds them.
    """

    paths: Sequence[str]
    read: Read
    pictures: Pictures
    shape: tuple[int, ...]
    keys: np.ndarray
    sums: np.ndarray
    kept: tuple[np.ndarray, np.ndarray] | None = field(default=None, repr=False)
    decoded: Decoded | None = field(default=None, repr=False)

    def keeping(self) -> Files:
        """The same, which keep what they decode where it is little."""
        size = len(self.paths) * int(np.prod(self.shape))
        if size > KEPT_BYTES:
            return self
        return replace(self, kept=(np.empty((len(self.paths), *self.shape), np.uint8), np.zeros(len(self.paths), bool)))

    def one(self, place: int) -> np.ndarray:
        """The pixels of one file; DataError where they are others than before."""
        if self.kept is not None and self.kept[1][place]:
            return self.kept[0][place]
        found = None if self.decoded is None else self.decoded.read(place)
        if found is None or not self._is(found, place):
            found = self._from_file(place)
        if self.kept is not None:
            self.kept[0][place] = found
            self.kept[1][place] = True
        return found

    def _from_file(self, place: int) -> np.ndarray:
        path = self.paths[place]
        found = self.read(path, self.pictures.like())
        if not self._is(found, place):
            raise DataError(
                f"{path}: it holds other pixels than when the data set was opened; leave files alone while they are "
                "read, and run again (`decoct verify` finds what was changed behind its time)"
            )
        return found

    def _is(self, pixels: np.ndarray, place: int) -> bool:
        return pixels.shape == self.shape and bool(image_keys(pixels[None])[0] == self.keys[place])

    def several(self, places: np.ndarray) -> np.ndarray:
        """uint8 `[B, H, W, C]`."""
        if self.kept is not None and self.kept[1][places].all():
            return self.kept[0][places]
        made = np.empty((len(places), *self.shape), np.uint8)

        def put(at: int) -> None:
            made[at] = self.one(int(places[at]))

        for _ in in_threads(put, range(len(places))):
            pass
        return made


class PictureFiles(Data):
    """A data set of picture files that are decoded when a batch asks for them."""

    @abstractmethod
    def decoder(self) -> tuple[Read, Pictures]:
        """How a file becomes pixels, and with which settings."""


class Pixels(LazyColumn):
    """uint8 `[N, H, W, C]`: the pictures at `places` of some files, decoded by several threads at each question.

    What is decoded is compared with its key, so that no other pixels are read than were when the data set was opened.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, files: Files, places: np.ndarray) -> None:
        self.files, self.places = files, places

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.places), *self.files.shape

    def __getitem__(self, wanted: Any) -> np.ndarray:
        if isinstance(wanted, tuple):
            first, *others = wanted
            found = self[first]
            return found[tuple(others)] if found.ndim < self.ndim else found[(slice(None), *others)]
        places = self.places[wanted]
        return self.files.several(places) if isinstance(places, np.ndarray) else self.files.one(int(places))

    def take(self, indices: np.ndarray) -> Pixels:
        return Pixels(self.files, self.places[indices])

    def blocks(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self.places), BLOCK):
            yield self.files.several(self.places[start : start + BLOCK])

    def read_by(self, read: Read) -> Pixels:
        """The same pixels, decoded in another way from now on."""
        return Pixels(replace(self.files, read=read), self.places)

    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """uint64 `[C]`: the sum over all pixels of each channel, and the sum of their squares."""
        total, squares = self.files.sums[self.places].sum(0, dtype=np.uint64)
        return total, squares


def examined(paths: Sequence[str], read: Read, pictures: Pictures, advice: str) -> Pixels:
    """The pixels of picture files, each decoded once for its key and size, and kept in a file while the disk has room.

    `pictures` notes what was done to some. DataError names the first that cannot be read, or has another size than the
    first one, and gives `advice`.
    """
    keys, sums = np.empty(len(paths), np.uint64), np.empty((len(paths), 2, pictures.channels), np.uint64)
    shape: tuple[int, ...] = ()
    kept: tuple[np.ndarray, np.ndarray] | None = None
    decoded: Decoded | None = None
    refused = False  # by the disk

    def look(at: int) -> Pictures:
        nonlocal shape, kept, decoded, refused
        noted = pictures.like()
        pixels = read(paths[at], noted)
        if at == 0:
            shape = pixels.shape
            if len(paths) * pixels.nbytes <= KEPT_BYTES:
                kept = np.empty((len(paths), *shape), np.uint8), np.ones(len(paths), bool)
            else:
                decoded = in_passing(len(paths), shape)
        if pixels.shape != shape:
            raise other_size(paths[at], pixels.shape, paths[0], shape, advice)
        keys[at], sums[at] = image_keys(pixels[None])[0], channel_sums(pixels)
        if kept is not None:
            kept[0][at] = pixels
        if decoded is not None and not refused and not decoded.write(at, pixels):
            refused = True
        return noted

    for start in range(0, len(paths), LOOKED_AT):
        first = [look(0)] if start == 0 else []
        for noted in (*first, *in_threads(look, range(start + len(first), min(start + LOOKED_AT, len(paths))))):
            pictures.add(noted)
    decoded = None if refused else decoded
    return Pixels(Files(paths, read, pictures.like(), shape, keys, sums, kept, decoded), np.arange(len(paths)))


def channel_sums(pixels: np.ndarray) -> np.ndarray:
    """uint64 `[2, C]` of uint8 `[H, W, C]`: the sum of each channel, and of its squares; exact.

    >>> channel_sums(np.array([[[1, 2], [3, 255]]], np.uint8)).tolist()
    [[4, 257], [10, 65029]]
    """
    rows, channels = pixels.reshape(len(pixels), -1), pixels.shape[-1]
    kind = np.uint32 if len(rows) <= 1 << 16 else np.uint64  # 2^16 squares of bytes fit into 32 bits
    found = rows.sum(0, dtype=kind), np.square(rows, dtype=np.uint16).sum(0, dtype=kind)
    return np.stack([each.reshape(-1, channels).sum(0, dtype=np.uint64) for each in found])
