"""Artifacts: folders with a manifest, written whole or not at all, checked when they are read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from decoct.errors import IntegrityError, ResourceError

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["model", "estimator", "exported", "store", "data", "records"]
MANIFEST = "manifest.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space, no more of a quota, and no larger files than this."""
_FULL_WORDS = ("no space left", "disk quota exceeded", "file too large", "requested and")
"""Of libraries that write by themselves and give no errno: NumPy says "9 requested and 4 written"."""
_ALL_BUT_FULL = 64 * 1024
SEAL = "sha256"
"""Key of the manifest's checksum of itself."""


@dataclass(frozen=True)
class Artifact:
    """A folder that a step made.

    `kind` says what it holds; `name` is the step's; `key` is the hash of everything it was made from; `lineage` maps
    the roles of its inputs to their keys; `scores` are validation figures; `meta` is what its kind adds
    (for a model: `side`, the preprocessing it was trained behind).
    """

    folder: Path
    kind: Kind
    name: str
    key: str = ""
    lineage: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """SHA-256 over kind, meta and the checksums of all files but the log: equal for equal content."""
        manifest = read_manifest(self.folder)
        files = {name: each["sha256"] for name, each in manifest["files"].items() if name != "log.jsonl"}
        text = json.dumps({"kind": self.kind, "meta": dict(self.meta), "files": files}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def file(self, name: str) -> Path:
        """A file of this artifact; IntegrityError if it is absent."""
        path = self.folder / name
        if not path.is_file():
            raise IntegrityError(f"{path} is missing; make the artifact again (decoct run does that)")
        return path

    def json(self, name: str) -> Any:
        """A JSON file of this artifact."""
        return json.loads(self.file(name).read_text(encoding="utf-8"))

    @classmethod
    def load(cls, folder: Path | str, *, verify: bool = True) -> Artifact:
        """The artifact in `folder`; IntegrityError names every damaged, missing or added file."""
        folder = Path(folder)
        manifest = read_manifest(folder)
        if verify and (wrong := damaged(folder)):
            raise IntegrityError(f"{folder}: " + "; ".join(wrong) + "; make it again (decoct run does that)")
        known = {name: manifest[name] for name in ("kind", "name", "key", "lineage", "scores", "meta")}
        return cls(folder=folder, **known)


@contextmanager
def writing(
    folder: Path | str,
    *,
    kind: Kind,
    name: str,
    key: str = "",
    lineage: Mapping[str, Any] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Iterator[Draft]:
    """Writes an artifact whole or not at all.

    The body writes into `draft.folder`, a temporary neighbour; after it, a manifest with the SHA-256 of each file is
    added, everything is synced and the folder renamed to its place. After an exception nothing is left;
    a full disk raises ResourceError.
    """
    folder = Path(folder)
    draft = Draft(folder.with_name(f".{folder.name}.writing"))
    if draft.folder.exists():
        shutil.rmtree(draft.folder)
    try:
        draft.folder.mkdir(parents=True)
        yield draft
        manifest = {
            "kind": kind,
            "name": name,
            "key": key,
            "lineage": dict(lineage or {}),
            "scores": draft.scores,
            "meta": {**(meta or {}), **draft.meta},
            "files": _checksums(draft.folder),
        }
        manifest = json.loads(json.dumps(manifest))
        text = json.dumps({**manifest, SEAL: _seal(manifest)}, indent=1, sort_keys=True)
        (draft.folder / MANIFEST).write_text(text, encoding="utf-8")
        sync_tree(draft.folder)
        move_into_place(draft.folder, folder)
    except BaseException as error:
        full, size = is_full(error) or filled_by(error, draft.folder), _bytes_below(draft.folder)
        shutil.rmtree(draft.folder, ignore_errors=True)
        if full:
            raise no_space(folder, size, "more than ") from error
        raise


@dataclass
class Draft:
    """An artifact being written: put files into `folder`, figures into `scores`, the rest into `meta`."""

    folder: Path
    scores: dict[str, float] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    def write_json(self, name: str, value: Any) -> None:
        """Writes `value` as JSON."""
        text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
        (self.folder / name).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`; IntegrityError if it is absent or differs from its own checksum."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(manifest, dict) and manifest.pop(SEAL, None) == _seal(manifest):
            return manifest
    except (FileNotFoundError, NotADirectoryError):
        raise IntegrityError(f"{path} is missing: this folder holds no whole artifact") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        pass
    raise IntegrityError(f"{path} is damaged")


def _seal(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def damaged(folder: Path) -> list[str]:
    """What differs from the manifest of `folder`, one sentence a file; empty when all is well."""
    manifest = read_manifest(folder)
    wrong = []
    for name, expected in sorted(manifest["files"].items()):
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif path.stat().st_size != expected["bytes"]:
            wrong.append(f"{name} has {path.stat().st_size} bytes, {expected['bytes']} were written")
        elif sha256(path) != expected["sha256"]:
            wrong.append(f"{name} is damaged: its SHA-256 differs from the manifest")
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    wrong += [f"{name} was added" for name in sorted(present - set(manifest["files"]) - {MANIFEST})]
    return wrong


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes one file whole or not at all: temporary neighbour, sync, rename. ResourceError on a full disk."""
    content = content.encode() if isinstance(content, str) else content
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(f".{path.name}.writing")
    with unless_full(path, len(content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            _sync(temporary)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _sync(path.parent)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file; ResourceError on a full disk, OSError where the file cannot be written else."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with unless_full(path, sum(each.nbytes for each in tensors.values())):
        try:
            save_file(dict(tensors), path)
        except SafetensorError as error:
            code = re.search(r"os error (\d+)", str(error))
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


@contextmanager
def unless_full(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turns a full disk inside the body into a ResourceError that says where, and how much is needed (bytes)."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise no_space(Path(str(error.filename)) if needed is None and error.filename else path, needed) from error


def is_full(error: BaseException) -> bool:
    """Whether a disk was full, a quota used up, or a file larger than allowed; whatever library says so."""
    if not isinstance(error, OSError):
        return False
    words = "" if error.errno is not None else str(error).lower()
    return error.errno in FULL or any(each in words for each in _FULL_WORDS)


def no_space(path: Path, needed: int | None = None, about: str = "") -> ResourceError:
    """The error of a full disk: where, how much is needed, how much there is."""
    place = path.absolute().parent
    while not place.exists() or place.name.startswith("."):
        place = place.parent
    free = size_text(shutil.disk_usage(place).free)
    wanted = f"; {about}{size_text(needed)} are needed" if needed is not None else ""
    return ResourceError(
        f"{path}: no space left on the disk{wanted}, and {place} has {free} free (a quota, or a limit on the size of "
        "files, may leave less); free some or give another folder, and run again: nothing half-written is left"
    )


def size_text(size: float) -> str:
    """Bytes in a unit that people read.

    >>> size_text(1_500_000)
    '1.5 MB'
    """
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = 0
    while size >= 1000 and power < len(units) - 1:
        size, power = size / 1000, power + 1
    return f"{size:.{1 if power else 0}f} {units[power]}"


def filled_by(error: BaseException, folder: Path) -> bool:
    """Whether a library that gives no reason failed because the disk of `folder` is full now."""
    if not isinstance(error, RuntimeError) or not folder.exists():
        return False
    return shutil.disk_usage(folder).free < _ALL_BUT_FULL


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def move_into_place(temporary: Path, folder: Path) -> None:
    """Renames `temporary` to `folder`; what stood there is moved aside first and removed after."""
    aside = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.rename(aside)
    try:
        temporary.rename(folder)
    except OSError:
        if aside.exists():
            aside.rename(folder)
        raise
    _sync(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """fsync of every file and folder below `folder`."""
    for path in sorted(folder.rglob("*")):
        _sync(path)
    _sync(folder)


def _checksums(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
