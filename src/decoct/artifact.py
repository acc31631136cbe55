"""Artifacts: folders with a manifest, written whole or not at all, checked when they are read."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from decoct.errors import DecoctError, IntegrityError, ResourceError, dotted
from decoct.spec import Choice, as_recipe_error

Kind = Literal["model", "estimator", "exported", "store", "data", "records"]
MANIFEST = "manifest.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space, no more of a quota, and no larger files than this."""
_FULL_WORDS = ("no space left", "disk quota exceeded", "file too large", "requested and")
"""Of libraries that write by themselves and give no errno: NumPy says "9 requested and 4 written"."""
_ALL_BUT_FULL = 64 * 1024
SEAL = "sha256"
"""Key of the manifest's checksum of itself."""
UNHASHED = ("log.jsonl", "speed.json")
"""Files of an artifact that tell how it was made and how fast it is here: no part of what it is."""
DEEPEST = 100
"""So many lists and mappings may lie in each other in JSON; what decoct writes stays below 20."""


def _with_use(plain: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(plain.get("use"), str):
        raise ValueError("`use` is missing, which names what it is")
    return plain


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name or any(len(p) > 255 for p in path.parts):
        raise ValueError("no file of this folder can have this name")
    return name


Described = Annotated[dict[str, Any], AfterValidator(_with_use)]
"""Shape of JSON that describes a Spec of a catalogue."""
FileName = Annotated[str, AfterValidator(_inside)]
"""Shape of the name of a file inside an artifact."""


class Strict(BaseModel):
    """Shape of a JSON object: values of exactly these types; further ones are let be."""

    model_config = ConfigDict(strict=True, extra="allow")


class _File(Strict):
    bytes: int = Field(ge=0)
    sha256: str


class _Teacher(Strict):
    fingerprint: str


class _Meta(Strict):
    """What steps write into `meta`: nothing of it must be there, but all of it is of these types."""

    side: str = ""
    seed: int = 0
    source: str | None = None
    parameters: int | None = None
    macs: int | None = None
    verified: dict[str, Any] = {}
    teacher: _Teacher = _Teacher(fingerprint="")
    keep: Described = {"use": ""}
    features: list[str] = []
    summary: str = ""
    statistics: dict[str, Any] = {}


class _Manifest(Strict):
    kind: Kind
    name: str
    key: str
    lineage: dict[str, Any]
    scores: dict[str, float]
    meta: _Meta
    files: dict[FileName, _File]


def parse_json(text: str | bytes, source: str, shape: Any = Any, *, error: type[DecoctError] = IntegrityError) -> Any:
    """The value that a JSON text holds, once it is known to be of this shape: a type, or a class of `Strict`.

    Whatever else the text is (no JSON, nested too deeply, numbers without end, halves of characters) is an `error` that
    says which `source` and where in it.

    >>> parse_json('{"bytes": 3, "sha256": "ab"}', "a.json", _File)
    {'bytes': 3, 'sha256': 'ab'}
    >>> parse_json('{"bytes": "3"}', "a.json", _File)
    Traceback (most recent call last):
    decoct.errors.IntegrityError: a.json is damaged: bytes: Input should be a valid integer; sha256: Field required
    """
    try:
        value = json.loads(text)
        surrogates = b"\\ud" if isinstance(text, bytes) else "\\ud"
        if surrogates in text.lower():  # type: ignore[operator]
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise error(f"{source} is damaged: it is nested too deeply") from None
    except ValueError as wrong:
        reason = str(wrong).partition("\n")[0][:200]
        raise error(f"{source} is damaged: it is no JSON that decoct writes ({reason})") from None
    if _opened(text) > DEEPEST and not _is_shallow(value):
        raise error(f"{source} is damaged: it is nested more than {DEEPEST} deep")
    return value if shape is Any else check_shape(value, source, shape, error=error)


def check_shape(value: Any, source: str, shape: Any, *, error: type[DecoctError] = IntegrityError) -> Any:
    """The same plain data, once it is known to be of this shape."""
    try:
        _adapter(shape).validate_python(value)
    except ValidationError as wrong:
        found = wrong.errors(include_url=False, include_input=False, include_context=False)[:3]
        lines = [f"{dotted(each['loc'])}: {each['msg']}".removeprefix(": ") for each in found]
        raise error(f"{source} is damaged: {'; '.join(lines)}") from None
    return value


def read_json(path: Path, shape: Any = Any, *, error: type[DecoctError] = IntegrityError) -> Any:
    """The value in a JSON file, as `parse_json` gives it; OSError where the file cannot be read."""
    return parse_json(path.read_bytes(), str(path), shape, error=error)


@contextmanager
def understood(source: object, *, error: type[DecoctError] = IntegrityError) -> Iterator[None]:
    """Whatever goes wrong while the body makes sense of plain data from `source` is an `error` that names it.

    For data whose shape no type can say, such as changes of a network. Errors of decoct's own stay as they are.
    """
    try:
        yield
    except (DecoctError, OSError):
        raise
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        ImportError,
        LookupError,
        NameError,
        StopIteration,
    ) as wrong:
        raise error(f"{source} is damaged: {type(wrong).__name__}: {wrong}") from wrong
    except (RuntimeError, TypeError, ValueError) as wrong:
        raise error(f"{source} is damaged: {str(wrong)[:300] or type(wrong).__name__}") from wrong


@functools.cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def _opened(text: str | bytes) -> int:
    """Brackets that a text opens: what lies in each other is no deeper."""
    return text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")


def _is_shallow(value: Any) -> bool:
    """Whether containers lie in each other no deeper than DEEPEST."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return True
    return False


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
        """SHA-256 over kind, meta and the checksums of all files but the log and times: equal for equal content."""
        manifest = read_manifest(self.folder)
        files = {name: each["sha256"] for name, each in manifest["files"].items() if name not in UNHASHED}
        text = json.dumps({"kind": self.kind, "meta": dict(self.meta), "files": files}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def file(self, name: str) -> Path:
        """A file of this artifact; IntegrityError if it is absent."""
        path = self.folder / name
        if not path.is_file():
            raise IntegrityError(f"{path} is missing; make the artifact again (decoct run does that)")
        return path

    def json(self, name: str, shape: Any = Any) -> Any:
        """A JSON file of this artifact; IntegrityError where it is not of this shape (see `parse_json`)."""
        return read_json(self.file(name), shape)

    @classmethod
    def load(cls, folder: Path | str, *, verify: bool = True) -> Artifact:
        """The artifact in `folder`; IntegrityError names every damaged, missing or added file."""
        folder = Path(folder)
        manifest = read_manifest(folder)
        if verify and (wrong := damaged(folder)):
            raise IntegrityError(f"{folder}: " + "; ".join(wrong) + "; make it again (decoct run does that)")
        known = {name: manifest[name] for name in ("kind", "name", "key", "lineage", "scores")}
        return cls(folder=folder, meta=_Facts(manifest["meta"], folder=folder), **known)


class _Facts(dict[str, Any]):
    """The `meta` of an artifact that was read: what it lacks is damage."""

    def __init__(self, facts: Mapping[str, Any] = {}, *, folder: Path | None = None) -> None:
        super().__init__(facts)
        self.folder = folder

    def __missing__(self, name: str) -> Any:
        raise IntegrityError(f"{self.folder}/{MANIFEST} is damaged: its meta holds no {name}; make the artifact again")


def described_by(package: str, plain: Any, source: object, *, error: type[DecoctError] = IntegrityError) -> Any:
    """The Spec of a catalogue (`Choice`) that plain data from `source` describe; `error` where they describe none."""
    try:
        return Choice(package).validate(plain)
    except ValidationError as wrong:
        raise error(f"{source} is damaged: {as_recipe_error(wrong, package.rpartition('.')[2])}") from None
    except (TypeError, ValueError) as wrong:
        raise error(f"{source}: {wrong}") from None


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
        (draft.folder / MANIFEST).write_text(sealed(manifest), encoding="utf-8")
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
        manifest = read_sealed(path)
    except (FileNotFoundError, NotADirectoryError):
        raise IntegrityError(f"{path} is missing: this folder holds no whole artifact") from None
    checked: dict[str, Any] = check_shape(manifest, str(path), _Manifest)
    return checked


def sealed(content: Mapping[str, Any]) -> str:
    """The content as JSON that carries its own checksum."""
    return json.dumps({**content, SEAL: _seal(content)}, indent=1, sort_keys=True)


def read_sealed(path: Path) -> dict[str, Any]:
    """What `sealed` wrote to a file; IntegrityError if it differs from its own checksum, OSError if it is absent."""
    content: dict[str, Any] = read_json(path, dict[str, Any])
    if content.pop(SEAL, None) != _seal(content):
        raise IntegrityError(f"{path} is damaged: it differs from its own checksum")
    return content


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


def write_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
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
