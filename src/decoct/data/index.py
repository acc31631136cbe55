"""The index: what was made of a data set's files, kept in the cache folder and taken while the files stay the same."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from decoct.artifact import Artifact, damaged, parse_json, writing
from decoct.data.base import Data, Dataset
from decoct.data.columns import Kept, at_home, kept_split, read_split, write_decoded, write_split
from decoct.data.files import cache_folder, others_may_write
from decoct.errors import DataError, DecoctError, IntegrityError

SMALL = 1 << 16
"""Data sets of fewer bytes are read each time."""
BLOCK = 1024
"""Files looked at at a time."""
SOURCES = "sources.npy"
LIBRARIES = ("numpy", "pillow", "pyarrow", "tokenizers")
"""Others of their versions may read the same files to other values."""


def opened(data: Data, *, offline: bool = False, sure: bool = True) -> Dataset:
    """The data set, from the index where its files are those that were read before.

    Files are the same where path, size, times (of content and of the entry in its folder) and inode are. `sure`: their
    content and what the index holds are compared with their checksums too, and read anew where they differ; pictures
    are compared with their keys whenever they are read. What the index cannot hold is opened as ever.
    """
    entry = _entry(data)
    if entry is None:
        return data.open(offline=offline)
    found = entry.read(sure)
    return entry.made(offline) if found is None else found


def changed(data: Data) -> list[str]:
    """The files that hold other bytes than the index remembers, though they look the same; where it remembers none."""
    try:
        entry = _entry(data)
        if entry is None:
            return []
        kept = Artifact.load(entry.folder)
        return entry.other_files(kept)
    except (DecoctError, OSError, ValueError):
        return []


def index_folder() -> Path:
    """Where the index lies; it can be deleted at any time."""
    return cache_folder("index")


@dataclass(frozen=True)
class Entry:
    """The place of one data set in the index, for the files as they are now."""

    data: Data
    files: Sequence[str]
    folder: Path

    @property
    def decoded(self) -> Path:
        """The folder of the decoded pictures: they lie outside the sealed one, as each is compared with its key."""
        return self.folder.with_name(f"{self.folder.name}.pixels")

    def read(self, sure: bool) -> Dataset | None:
        """What is kept; None where nothing whole is there, or, looked at closely, not what the files hold."""
        try:
            kept = Artifact.load(self.folder, verify=False)
            if others_may_write(index_folder()):
                raise IntegrityError("others may have written it")
            if sure and (damaged(self.folder) or self.other_files(kept)):
                raise IntegrityError("it is not what the files hold")
            facts = Kept(**parse_json(kept.meta["kept"], str(self.folder), dict[str, Any]))
            splits = {
                name: read_split(self.folder, name, each, self.data, self.files, self.decoded)
                for name, each in facts.splits.items()
            }
        except (DecoctError, OSError, ValueError, TypeError, LookupError):
            shutil.rmtree(self.folder, ignore_errors=True)
            return None
        for each in facts.warnings:
            warnings.warn(each, stacklevel=4)
        return Dataset(
            splits,
            facts.fingerprint,
            tuple(facts.classes),
            tuple(facts.features),
            facts.info,
            index=self.folder,
            remembered=not sure,
        )

    def made(self, offline: bool) -> Dataset:
        """The data set read from its files, and kept where nothing has changed meanwhile."""
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = self.data.open(offline=offline)
        for each in told:
            warnings.warn(each.message, each.category, stacklevel=4)
        try:
            self._keep(found, [str(each.message) for each in told])
        except (DecoctError, OSError, ValueError):
            return found
        if not self.folder.is_dir():
            return found
        splits = {name: at_home(split, self.folder, name) for name, split in found.splits.items()}
        return replace(found, splits=splits, index=self.folder)

    def other_files(self, kept: Artifact) -> list[str]:
        """The files whose bytes are others than when they were read."""
        known = np.load(kept.file(SOURCES), allow_pickle=False)
        if known.shape != (len(self.files), 32):
            raise IntegrityError(f"{kept.folder}: its checksums are not those of these files")
        return [path for path, old in zip(self.files, known) if _hashed(path) != old.tobytes()]

    def _keep(self, found: Dataset, told: list[str]) -> None:
        """Writes the entry under a name of its own and moves it into place, unless another process was first."""
        splits = {name: kept_split(split) for name, split in found.splits.items()}
        facts = Kept(found.fingerprint, list(found.classes), list(found.features), dict(found.info), told, splits)
        text = json.dumps(facts.plain(), allow_nan=False)  # a text, as a manifest sorts its keys
        assert json.loads(text) == facts.plain(), f"{self.data.use}: what is known of the data is no plain data"
        index_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        _forget_others(self.folder)
        for name, split in found.splits.items():
            write_decoded(self.decoded, name, split)
        own = self.folder.with_name(f"{self.folder.name}.{os.getpid()}.{threading.get_ident()}")
        with writing(own, kind="data", name=self.data.use, meta={"kept": text}) as draft:
            for name, split in found.splits.items():
                write_split(draft.folder, name, split, self.files)
            hashes = b"".join(map(_hashed, self.files))
            np.save(draft.folder / SOURCES, np.frombuffer(hashes, np.uint8).reshape(-1, 32), allow_pickle=False)
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, own, ignore_errors=True)
            again = _entry(self.data)
            if again is not None and again.folder == self.folder:
                own.rename(self.folder)


def _entry(data: Data) -> Entry | None:
    """Where a data set stands in the index; None where it cannot stand there."""
    listed = data.files() if type(data).__module__.startswith("decoct.") else None
    if not listed:
        return None
    here = os.getcwd()
    files = listed if all(map(os.path.isabs, listed)) else [os.path.join(here, each) for each in listed]
    settings = {name: value for name, value in data.plain().items() if name != "path"}
    named = hashlib.sha256(json.dumps([settings, os.path.join(here, str(data.path))], sort_keys=True).encode())
    state = hashlib.sha256(json.dumps([_code(), _versions()]).encode())
    size = 0
    for start in range(0, len(files), BLOCK):
        some = files[start : start + BLOCK]
        try:
            found = list(map(os.stat, some))
        except OSError:
            return None
        size += sum(each.st_size for each in found)
        facts = [
            f"{path}\0{each.st_size}\0{each.st_mtime_ns}\0{each.st_ctime_ns}\0{each.st_ino}\0"
            for path, each in zip(some, found)
        ]
        state.update("".join(facts).encode("utf-8", "surrogateescape"))
    if size < SMALL:
        return None
    return Entry(data, files, index_folder() / named.hexdigest()[:32] / state.hexdigest()[:32])


def _hashed(path: str) -> bytes:
    """SHA-256 of a file's bytes; of a folder nothing."""
    if os.path.isdir(path):
        return bytes(32)
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _forget_others(folder: Path) -> None:
    """Removes what is kept of earlier states of the same data set, and what a killed process left there."""
    there = list(folder.parent.iterdir()) if folder.parent.is_dir() else []
    for each in there:
        with contextlib.suppress(OSError):
            if not each.name.lstrip(".").startswith(folder.name) or each.stat().st_mtime < time.time() - 86_400:
                shutil.rmtree(each, ignore_errors=True)


@functools.cache
def _code() -> str:
    """SHA-256 over the code that reads data and says what tasks take of them."""
    rooms = (Path(__file__).parent, Path(__file__).parent.parent / "tasks")
    found = hashlib.sha256()
    for path in (path for room in rooms for path in sorted(room.rglob("*.py"))):
        found.update(path.read_bytes())
    return found.hexdigest()


def _versions() -> list[str]:
    found = []
    for name in LIBRARIES:
        try:
            found.append(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            found.append("")
    return found
