"""Decoded pictures in a file of the cache folder: read from there, at no cost in memory, while the disk has room."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np

from decoct.data.files import cache_folder

MOST_BYTES = 4 << 30
"""Of one data set; a larger one is decoded each time."""
SHARE = 4
"""At most one in so many of the bytes that are free on the disk is taken."""


class Decoded:
    """uint8 samples of one shape end to end in an open file; several threads may read."""

    def __init__(self, file: IO[bytes], shape: tuple[int, ...]) -> None:
        self._file, self._shape, self._lock = file, shape, threading.Lock()
        self._bytes = int(np.prod(shape))

    def write(self, place: int, pixels: np.ndarray) -> bool:
        """Puts a sample at its place; whether the disk took it."""
        try:
            with self._lock:
                self._file.seek(place * self._bytes)
                return self._file.write(np.ascontiguousarray(pixels).reshape(-1).data) == self._bytes
        except OSError:
            return False

    def read(self, place: int) -> np.ndarray | None:
        """The sample at a place; None where the file does not hold it. Whoever reads compares it with its key."""
        made = np.empty(self._shape, np.uint8)
        try:
            with self._lock:
                self._file.seek(place * self._bytes)
                count = self._file.readinto(made.reshape(-1).data)  # type: ignore[attr-defined]
        except (OSError, ValueError):
            return None
        return made if count == self._bytes else None


def in_passing(count: int, shape: tuple[int, ...]) -> Decoded | None:
    """A file without a name, which ends with the last that uses it; None where it would take too much of the disk."""
    folder = cache_folder("index")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not _fits(count, shape, folder):
            return None
        return Decoded(tempfile.TemporaryFile(dir=folder, buffering=0), shape)
    except OSError:
        return None


def keep(path: Path, count: int, shape: tuple[int, ...], samples: Iterable[np.ndarray]) -> None:
    """Writes `count` samples to a file, whole or not at all; nothing where they would take too much of the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not _fits(count, shape, path.parent):
        return
    own = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with own.open("wb") as file:
            for each in samples:
                file.write(np.ascontiguousarray(each).reshape(-1).data)
        own.replace(path)
    finally:
        with contextlib.suppress(OSError):
            own.unlink(missing_ok=True)


def kept(path: Path, count: int, shape: tuple[int, ...]) -> Decoded | None:
    """The samples of a file that `keep` wrote; None where there is none of this size."""
    try:
        if path.stat().st_size != count * int(np.prod(shape)):
            return None
        return Decoded(path.open("rb", buffering=0), shape)
    except OSError:
        return None


def _fits(count: int, shape: tuple[int, ...], folder: Path) -> bool:
    size = count * int(np.prod(shape))
    return size <= MOST_BYTES and size <= shutil.disk_usage(folder).free // SHARE
