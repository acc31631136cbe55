"""Tar files as shards of samples: what stands where in them, and reading it from there."""

from __future__ import annotations

import glob
import itertools
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from decoct.data.files import present, regular, walked_names
from decoct.errors import DataError

HEADER = 512
"""Bytes before the content of a member, which hold its name."""
MOST_NAMES = 100_000
"""Files that one pattern may stand for."""
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MEMBER = re.compile(r"((?:.*/|)[^./][^.]*)\.([^/]+)")


@dataclass(frozen=True)
class Member:
    """A file in a shard: `key` and `ending` of `key.ending`, and where its content is."""

    key: str
    ending: str
    offset: int
    size: int


def shard_files(path: Path) -> list[Path]:
    """The tar files that a path stands for: one, those below a folder, or a pattern such as `train-{000..099}.tar`."""
    text = str(path)
    if any(mark in text for mark in "{*?["):
        names = list(itertools.islice(_expanded(text), MOST_NAMES + 1))
        if len(names) > MOST_NAMES:
            raise DataError(f"data.path={path}: it stands for more than {MOST_NAMES:,} files; give their folder")
        found = [each for name in names for each in _matching(name)]
    elif present(path).is_dir():
        found = sorted(Path(each) for each in walked_names(present(path)) if each.lower().endswith(".tar"))
    else:
        found = [present(path)]
    if not found:
        raise DataError(f"data.path={path}: no .tar files there; give a shard, their folder or a pattern")
    return [each.absolute() for each in found]


def _matching(name: str) -> list[Path]:
    if any(mark in name for mark in "*?["):
        return sorted(map(Path, glob.glob(name, recursive=True)))
    return [present(Path(name))]


def _expanded(text: str) -> Iterator[str]:
    """The texts that braces stand for.

    >>> list(_expanded("{a,b}-{08..10}.tar"))
    ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar', 'b-09.tar', 'b-10.tar']
    """
    found = _BRACES.search(text)
    if found is None:
        yield text
        return
    numbers = _RANGE.fullmatch(found[1])
    if numbers:
        low, high = numbers[1], numbers[2]
        middles: Iterator[str] = (f"{number:0{len(low)}}" for number in range(int(low), int(high) + 1))
    else:
        middles = iter(found[1].split(","))
    for middle in middles:
        for rest in _expanded(text[found.end() :]):
            yield text[: found.start()] + middle + rest


def members_of(path: Path) -> Iterator[Member]:
    """The files of a shard, in their order, from its headers alone; those without an ending are left out.

    DataError where it is damaged or compressed, or holds links or devices.
    """
    with regular(path).open("rb") as file:
        if file.read(2) in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5"):
            raise DataError(f"{path}: a compressed shard, of which no part can be read alone; unpack it (gunzip)")
        size = file.seek(0, 2)
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (found := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # else it lists all
                    if found.isdir():
                        continue
                    if not found.isfile() or found.issparse():
                        raise DataError(f"{path}: {found.name!r} is no plain file but a link or a device; leave it out")
                    if not 0 <= found.offset_data <= found.offset_data + found.size <= size:
                        raise tarfile.ReadError("unexpected end of data")
                    parts = _MEMBER.fullmatch(found.name)
                    if parts is not None:
                        yield Member(parts[1], parts[2].lower(), found.offset_data, found.size)
                file.seek(archive.offset)
                if file.read(HEADER) != bytes(HEADER):
                    raise tarfile.ReadError("no end is marked where its members end")
        except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError) as error:
            raise DataError(f"{path}: a damaged shard ({error}); get it again") from None


class Place(str):
    """Where a member's content is; as a text, for errors, the shard and the byte."""

    shard: str
    offset: int
    size: int

    def __new__(cls, shard: str, offset: int, size: int) -> Place:
        found = super().__new__(cls, f"{shard}, at byte {offset}")
        found.shard, found.offset, found.size = shard, offset, size
        return found

    def read(self) -> tuple[bytes, str]:
        """The content, and shard and member in words; DataError where the shard ends before."""
        try:
            with open(self.shard, "rb") as file:
                file.seek(self.offset - HEADER)
                head, content = file.read(HEADER), file.read(self.size)
        except (OSError, ValueError) as error:
            raise DataError(f"{self}: cannot be read ({error})") from None
        if len(content) != self.size:
            raise DataError(f"{self}: the shard ends there; it was changed since its data set was opened")
        name = head[:100].partition(b"\0")[0].decode("utf-8", "replace")
        return content, f"{self.shard}: {name}"


class Places(Sequence[str]):
    """Members of shards, by `rows` int64 `[N, 3]`: the number of the shard, where the content begins, its size."""

    def __init__(self, shards: Sequence[str], rows: np.ndarray) -> None:
        self.shards, self.rows = shards, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Place: ...

    @overload
    def __getitem__(self, place: slice) -> list[Place]: ...

    def __getitem__(self, place: int | slice) -> Place | list[Place]:
        if isinstance(place, slice):
            return [self._place(row) for row in self.rows[place].tolist()]
        return self._place(self.rows[place].tolist())

    def among(self, files: Sequence[str], chosen: np.ndarray) -> np.ndarray:
        """The rows at `chosen`, with the shards numbered as in `files`."""
        number = {path: at for at, path in enumerate(files)}
        rows = np.array(self.rows[chosen])
        rows[:, 0] = np.array([number[each] for each in self.shards], np.int64)[rows[:, 0]]
        return rows

    def _place(self, row: list[int]) -> Place:
        return Place(self.shards[row[0]], row[1], row[2])
