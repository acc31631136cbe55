"""Artifacts: folders with a manifest, written whole or not at all, checked when they are read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from decoct.errors import IntegrityError, ResourceError

Kind = Literal["model", "estimator", "exported", "store", "data", "records"]
MANIFEST = "manifest.json"
FULL = (errno.ENOSPC, errno.EDQUOT)
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
    draft.folder.mkdir(parents=True)
    try:
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
        (draft.folder / MANIFEST).write_text(sealed(manifest), encoding="utf-8")
        sync_tree(draft.folder)
        move_into_place(draft.folder, folder)
    except BaseException as error:
        shutil.rmtree(draft.folder, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise ResourceError(f"{folder}: no space left on the disk; free some and run again") from error
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
        return read_sealed(path)
    except (FileNotFoundError, NotADirectoryError):
        raise IntegrityError(f"{path} is missing: this folder holds no whole artifact") from None


def sealed(content: Mapping[str, Any]) -> str:
    """The content as JSON that carries its own checksum."""
    return json.dumps({**content, SEAL: _seal(content)}, indent=1, sort_keys=True)


def read_sealed(path: Path) -> dict[str, Any]:
    """What `sealed` wrote to a file; IntegrityError if it differs from its own checksum, OSError if it is absent."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.pop(SEAL, None) == _seal(content):
            return content
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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        _sync(temporary)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in FULL:
            raise ResourceError(f"{path}: no space left on the disk; free some and run again") from error
        raise
    _sync(path.parent)


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
