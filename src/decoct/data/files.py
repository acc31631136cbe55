"""Where data sets are on disk and how they get there."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from decoct.errors import DataError, ResourceError
from decoct.memory import free_memory, gigabytes

COPIES = 6
"""How often the content of a file is in memory while it is read: bytes, text, lines and cells, numbers."""
BLOCK = 1 << 22
JUNK = ("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "lost+found")
"""Folders that systems and programs leave among data."""


def cache_folder(name: str) -> Path:
    """Where a downloaded data set is kept: under DECOCT_CACHE, else under the user's cache folder."""
    root = os.environ.get("DECOCT_CACHE")
    if root is None:
        root = str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "decoct")
    return Path(root) / name


def present(path: Path) -> Path:
    """The path itself; DataError if nothing is there."""
    try:
        path = path.expanduser()
        there = path.exists()
    except (OSError, RuntimeError) as error:
        raise DataError(f"data.path={path}: cannot be looked at ({error}); give the path of the data") from None
    if not there:
        raise DataError(f"data.path={path}: nothing is there; give the path of the data on this machine")
    return path


def folder_of(path: Path) -> Path:
    """The path itself; DataError if no folder is there."""
    path = present(path)
    if not path.is_dir():
        raise DataError(f"data.path={path}: no folder but {_kind(path)}; give the folder of the data")
    return path


def regular(path: Path) -> Path:
    """The path itself; DataError where no regular file is there: a pipe or a device may never end, or never begin."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: {_kind(path)} and no regular file; save the data as a file and give its path")
    return path


def _kind(path: Path) -> str:
    """What stands at a path, in words."""
    mode = path.stat().st_mode
    kinds = (
        (stat.S_ISREG, "a file"),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((name for test, name in kinds if test(mode)), "something else")


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or left by a system or program, and so no data.

    >>> is_junk(".ipynb_checkpoints"), is_junk("._cat.png"), is_junk("__MACOSX"), is_junk("cat")
    (True, True, True, False)
    """
    return name.startswith(".") or name in JUNK


def walked(folder: Path, junk: list[Path] | None = None) -> Iterator[Path]:
    """The files below a folder, unsorted, but those that are junk or in a folder that is; links to folders are left.

    `junk` takes the folders that were left out.
    """
    yield from map(Path, walked_names(folder, junk))


def walked_names(folder: Path, junk: list[Path] | None = None) -> Iterator[str]:
    """The same as texts, which for many files takes a third of the time."""
    waiting = [os.fspath(folder)]
    while waiting:
        place = waiting.pop()
        try:
            with os.scandir(place) as there:
                every = [(each.name, _is_folder(each), each.is_symlink()) for each in there]
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read ({error.strerror or error})") from None
        start = os.path.join(place, "")
        yield from [start + name for name, is_folder, _ in every if not is_folder and not is_junk(name)]
        folders = [(name, is_link) for name, is_folder, is_link in every if is_folder]
        if junk is not None:
            junk += [Path(start + name) for name, _ in folders if is_junk(name)]
        waiting += [start + name for name, is_link in folders if not is_link and not is_junk(name)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def others_may_write(path: Path) -> bool:
    """Whether another user of this machine could have written a file or folder of the cache; OSError if it is gone."""
    facts = path.stat()
    return os.name == "posix" and (facts.st_uid != os.getuid() or bool(facts.st_mode & 0o022))


def absent(use: str, wanted: str) -> DataError:
    """The error for data that are neither on disk nor to be downloaded; `wanted` says what `path` must hold."""
    return DataError(
        f"{use}: not on disk, and offline. Run once without --offline (it is kept in {cache_folder(use)}), "
        f"or give data.path={wanted}"
    )


def failed(use: str, error: BaseException, wanted: str) -> DataError:
    """The error for a download that did not work."""
    return DataError(
        f"{use}: the download failed ({type(error).__name__}: {error}); try again, or give data.path={wanted}"
    )


def read_bytes(path: Path) -> bytes:
    """A regular file's bytes, decompressed if it is gzip; DataError names the file where it is damaged, ResourceError
    where memory would not do for what is made of them."""
    with _as_data_errors(path):
        size, most = regular(path).stat().st_size, free_memory() // COPIES
        if size > most:
            raise _too_large(path, f"holds {gigabytes(size)}", most)
        with path.open("rb") as file:
            if file.read(2) != b"\x1f\x8b":
                file.seek(0)
                return file.read()
        return _decompressed(path, most)


def _decompressed(path: Path, most: int) -> bytes:
    blocks, size = [], 0
    with gzip.open(path, "rb") as file:
        while block := file.read(BLOCK):
            size += len(block)
            if size > most:
                raise _too_large(path, f"holds more than {gigabytes(most)} when decompressed", most)
            blocks.append(block)
    return b"".join(blocks)


def _too_large(path: Path, what: str, most: int) -> ResourceError:
    return ResourceError(
        f"{path}: it {what}; at most {gigabytes(most)} can be read into the memory that is free here, as its parts are "
        f"there up to {COPIES} times; take a part of the file, or a machine with more memory"
    )


def read_text(path: Path) -> str:
    """A file's UTF-8 text, decompressed if it is gzip."""
    content = read_bytes(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; convert the file to UTF-8") from None


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """A regular file to be read from its start to its end, decompressed if it is gzip; errors as of `read_bytes`."""
    with _as_data_errors(path), regular(path).open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not zipped:
            yield file
            return
        with gzip.open(file, "rb") as unzipped:
            yield cast("IO[bytes]", unzipped)


@contextlib.contextmanager
def open_text(path: Path, newline: str | None = "\n") -> Iterator[io.TextIOWrapper]:
    """The same as UTF-8 text; DataError names the byte that is none. `newline` as of `open`."""
    with open_bytes(path) as file:
        try:
            with io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline) as text:
                yield text
        except UnicodeDecodeError:
            raise DataError(f"{path}: byte {_no_text(path)} is not UTF-8; convert the file to UTF-8") from None


@contextlib.contextmanager
def _as_data_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip ({error}); get the file again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _no_text(path: Path) -> int:
    """The place of the first byte that is not UTF-8."""
    decoder, before = codecs.getincrementaldecoder("utf-8")(), 0
    with open_bytes(path) as file:
        while True:
            block, waiting = file.read(BLOCK), len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                return before - waiting + error.start
            before += len(block)


def from_hub(use: str, repository: str, names: dict[str, str], wanted: str, *, offline: bool) -> dict[str, Path]:
    """Files of a Hugging Face data set repository, by the names given; what is in its cache needs no network."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise ResourceError(
            f"{use}: huggingface_hub is missing; pip install huggingface_hub, or give data.path={wanted}"
        ) from None
    found = {}
    for name, file in names.items():
        try:
            found[name] = Path(
                hf_hub_download(
                    repository, file, repo_type="dataset", cache_dir=cache_folder(use), local_files_only=offline
                )
            )
        except LocalEntryNotFoundError as error:
            raise (absent(use, wanted) if offline else failed(use, error, wanted)) from None
        except (HfHubHTTPError, OSError) as error:
            raise failed(use, error, wanted) from None
    return found
