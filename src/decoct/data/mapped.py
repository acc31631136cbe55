"""Arrays that need no memory: mapped from files without a name, which end with the last that uses them."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from decoct.data.files import cache_folder
from decoct.memory import require_memory

LEAST = 1 << 20
"""Arrays of fewer bytes stay in memory."""
BLOCK = 1 << 14
"""Rows at a time."""
SHARE = 4
"""At most one in so many of the bytes that are free on the disk is taken at once."""
ADVICE = "set DECOCT_CACHE to a folder on a disk with room, from which they can be read, or take a part of the data"


def spans(count: int, size: int | None = None) -> Iterator[slice]:
    """Neighbouring rows, a block at a time.

    >>> list(spans(5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    size = size or BLOCK
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def is_mapped(array: np.ndarray) -> bool:
    """Whether an array is one of a file."""
    base: Any = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return isinstance(base, mmap.mmap)


def room(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array to be filled, of zeros where it is mapped: in memory where it is small or the disk has no room."""
    shape = (shape,) if isinstance(shape, int) else shape
    size = math.prod(shape) * np.dtype(dtype).itemsize
    file = _file(size) if size > LEAST else None
    if file is None:
        require_memory(size, f"{math.prod(shape):,} numbers of the data", ADVICE)
        return np.empty(shape, dtype)
    with file:
        try:
            _reserve(file, size)
        except OSError:
            return np.empty(shape, dtype)
        return _view(file, size, dtype, shape)


class Rows:
    """Rows of one type and `shape` added block by block: in memory while they are few, then in a file.

    >>> rows = Rows(np.int64, (2,))
    >>> for number in range(3):
    ...     rows.add(np.full((1, 2), number))
    >>> rows.done().tolist()
    [[0, 0], [1, 1], [2, 2]]
    """

    def __init__(self, dtype: Any, shape: tuple[int, ...] = ()) -> None:
        self._dtype, self._shape = np.dtype(dtype), shape
        self._parts: list[np.ndarray] = []
        self._file: IO[bytes] | None = None
        self._count = self._bytes = 0
        self._tried = False

    def __len__(self) -> int:
        return self._count

    def add(self, values: np.ndarray) -> None:
        """Adds `[b, *shape]`."""
        block = np.ascontiguousarray(values, self._dtype)
        assert block.shape[1:] == self._shape, f"{block.shape} among rows of {self._shape}"
        self._count += len(block)
        if self._file is not None and not self._written(block):
            return self._back_to_memory(block)
        if self._file is None:
            self._parts.append(np.array(block))
            if not self._tried and sum(each.nbytes for each in self._parts) > LEAST:
                self._to_file()
        return None

    def done(self) -> np.ndarray:
        """`[N, *shape]`; no more can be added."""
        if self._file is None:
            return np.concatenate(self._parts) if self._parts else np.empty((0, *self._shape), self._dtype)
        with self._file as file:
            file.flush()
            return _view(file, self._bytes, self._dtype, (self._count, *self._shape))

    def _to_file(self) -> None:
        self._tried = True
        self._file = _file(0)
        if self._file is not None:
            parts, self._parts = self._parts, []
            for each in parts:
                if self._file is not None and not self._written(each):
                    self._back_to_memory(each)
                elif self._file is None:
                    self._parts.append(each)

    def _written(self, block: np.ndarray) -> bool:
        assert self._file is not None
        if not _written(self._file, block):
            return False
        self._bytes += block.nbytes
        return True

    def _back_to_memory(self, block: np.ndarray) -> None:
        """The disk is full: what it took comes back, and what follows stays in memory."""
        assert self._file is not None
        require_memory(2 * self._bytes, f"{self._count:,} rows of the data", ADVICE)
        with self._file as file:
            before = np.empty(self._bytes, np.uint8)
            file.seek(0)
            file.readinto(before.data)  # type: ignore[attr-defined]
        self._file = None
        self._parts = [before.view(self._dtype).reshape(-1, *self._shape), np.array(block)]


class Growing:
    """Numbers of one type to which others are added, and of which all can be read meanwhile.

    >>> numbers = Growing(np.int32)
    >>> numbers.add(np.array([4, 5])), numbers.add(np.array([6])), numbers.values.tolist()
    (0, 2, [4, 5, 6])
    """

    def __init__(self, dtype: Any) -> None:
        self._dtype = np.dtype(dtype)
        self._file: IO[bytes] | None = None
        self._tried = False
        self._count = 0
        self._values = np.empty(0, self._dtype)

    @property
    def values(self) -> np.ndarray:
        """All of them."""
        if len(self._values) < self._count:
            assert self._file is not None
            self._values = _view(self._file, self._count * self._dtype.itemsize, self._dtype, (self._count,))
        return self._values[: self._count]

    def add(self, more: np.ndarray) -> int:
        """Adds some `[n]`; gives the place of the first."""
        block, start = np.ascontiguousarray(more, self._dtype), self._count
        if self._file is None and not self._tried and (start + len(block)) * self._dtype.itemsize > LEAST:
            self._tried, self._file = True, _file(0)
            if self._file is not None and not self._written(self.values):
                self._file = None
        if self._file is not None and not self._written(block):
            before = np.array(self.values)
            self._file, self._values = None, before
        if self._file is None:
            if start + len(block) > len(self._values):
                larger = np.empty(max(2 * start, start + len(block)), self._dtype)
                larger[:start] = self.values
                self._values = larger
            self._values[start : start + len(block)] = block
        self._count += len(block)
        return start

    def _written(self, block: np.ndarray) -> bool:
        assert self._file is not None
        return _written(self._file, block)


def taken(array: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """`array[indices]`; of a mapped one, mapped."""
    if not _stays_mapped(array, len(indices)):
        found: np.ndarray = array[indices]
        return found
    rows = Rows(array.dtype, array.shape[1:])
    for part in spans(len(indices)):
        rows.add(array[indices[part]])
    return rows.done()


def chosen(array: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`array[mask]`; of a mapped one, mapped. `mask` bool `[N]`."""
    if not _stays_mapped(array, len(array)):
        found: np.ndarray = array[mask]
        return found
    rows = Rows(array.dtype, array.shape[1:])
    for part in spans(len(array)):
        rows.add(array[part][mask[part]])
    return rows.done()


def _stays_mapped(array: np.ndarray, count: int) -> bool:
    return count * math.prod(array.shape[1:]) * array.dtype.itemsize > LEAST and is_mapped(array)


def _file(size: int) -> IO[bytes] | None:
    """A file without a name in the cache folder; None where there is no room for `size` bytes."""
    folder = cache_folder("index")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if size > shutil.disk_usage(folder).free // SHARE:
            return None
        return tempfile.TemporaryFile(dir=folder, buffering=0)
    except OSError:
        return None


def _written(file: IO[bytes], block: np.ndarray) -> bool:
    """Whether the disk took all of it."""
    content = block.reshape(-1).view(np.uint8).data
    try:
        while len(content):
            content = content[file.write(content) :]
    except OSError:
        return False
    return True


def _reserve(file: IO[bytes], size: int) -> None:
    """Takes the room on the disk: a mapping that met a full one would end the process."""
    if hasattr(os, "posix_fallocate"):
        with contextlib.suppress(NotImplementedError):
            os.posix_fallocate(file.fileno(), 0, size)
            return
    zeros = bytes(min(size, 1 << 20))
    for start in range(0, size, len(zeros)):
        file.write(zeros[: size - start])


def _view(file: IO[bytes], size: int, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(mmap.mmap(file.fileno(), size), dtype).reshape(shape)
