"""Shards: Arrow files of rows, written whole, that can be read alone and mapped into memory."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256 as sha256_of
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from decoct.artifact import Strict, check_shape, parse_json, read_json, sha256, write_whole
from decoct.errors import DataError, IntegrityError
from decoct.store.columns import Cell, Ragged, taken
from decoct.store.layout import Layout, Rows

if TYPE_CHECKING:
    import pyarrow

FORMAT = 1
FIRST = ("seen", "key", "view")
_NUMBERS = (("seen", "uint64"), ("key", "uint64"), ("view", "uint32"))
_NAME = re.compile(r"([0-9]+)\.arrow")


class _Record(Strict):
    file: str = Field(pattern=f"^{_NAME.pattern}$")
    rows: int = Field(gt=0, lt=2**32)
    bytes: int = Field(ge=0)
    sha256: str
    layout: str
    measured: dict[str, float] = {}


@dataclass(frozen=True)
class Shard:
    """One finished shard: its file's name, rows, bytes and checksum, the digest of its layout, and sums over the rows
    that were measured (`rows`, `kl`, `kept_mass`)."""

    file: str
    rows: int
    bytes: int
    sha256: str
    layout: str
    measured: Mapping[str, float] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """The number in its name."""
        return number_of(self.file)

    def plain(self) -> dict[str, Any]:
        """What JSON holds."""
        return asdict(self)


class _Metadata(Strict):
    format: int
    layout: dict[str, Any]
    measured: dict[str, float]


@dataclass(frozen=True)
class Mapped:
    """A shard mapped into memory: views of its columns, no copies."""

    seen: np.ndarray
    keys: np.ndarray
    views: np.ndarray
    cells: Mapping[str, Cell]

    def __len__(self) -> int:
        return len(self.seen)


def shard_name(number: int) -> str:
    """File name of a shard.

    >>> shard_name(12)
    '00012.arrow'
    """
    return f"{number:05d}.arrow"


def number_of(file: str) -> int:
    """The number in a shard's file name; that it is one is checked by `shard_of`, `is_shard` or by who wrote it."""
    match = _NAME.fullmatch(file)
    assert match is not None, file
    return int(match[1])


def is_shard(file: str) -> bool:
    """Whether a file's name is a shard's, without any folder.

    >>> is_shard("00012.arrow"), is_shard("../00012.arrow"), is_shard("index.arrow")
    (True, False, False)
    """
    return _NAME.fullmatch(file) is not None


def shard_of(data: Any) -> Shard:
    """What a table of shards says of one; IntegrityError where it is nothing that decoct wrote."""
    try:
        check_shape(data, "a shard's record", _Record)
        shard = Shard(**data)
    except (IntegrityError, TypeError):
        raise IntegrityError(f"the table of shards has an entry that decoct did not write: {str(data)[:80]}") from None
    return shard


def write_shard(path: Path, rows: Rows | Sequence[Rows], layout: Layout) -> Shard:
    """Writes rows to `path` (`NNNNN.arrow`), then its record beside it (`NNNNN.json`); both whole or not at all.

    Of rows with an equal `seen` the first is kept. DataError for no rows; ResourceError on a full disk.
    """
    shard, content = packed(path.name, rows, layout)
    put(path.parent, shard, content)
    return shard


def packed(file: str, rows: Rows | Sequence[Rows], layout: Layout) -> tuple[Shard, bytes]:
    """The record and the bytes of the shard `file`, wherever it will be written; see `write_shard`."""
    joined = rows if isinstance(rows, Rows) else Rows.join(rows)
    if len(joined) == 0:
        raise DataError(f"{file}: a shard of no rows")
    _, first = np.unique(joined.seen, return_index=True)
    if len(first) < len(joined):
        joined = _only(joined, np.sort(first))
    content = _arrow(joined, layout)
    digest = sha256_of(content).hexdigest()
    return Shard(file, len(joined), len(content), digest, layout.digest(), dict(joined.measured)), content


def put(folder: Path, shard: Shard, content: bytes) -> None:
    """Writes the bytes of a shard, then its record; IntegrityError where they are not what the record says."""
    if len(content) != shard.bytes or sha256_of(content).hexdigest() != shard.sha256:
        raise IntegrityError(f"{shard.file} arrived damaged: its SHA-256 differs from the one that was computed")
    write_whole(folder / shard.file, content)
    write_record(folder, shard)


def write_record(folder: Path, shard: Shard) -> None:
    """Writes the record of a shard, which says that it is whole."""
    write_whole((folder / shard.file).with_suffix(".json"), json.dumps(shard.plain(), sort_keys=True))


def finished(folder: Path) -> dict[int, Shard]:
    """Shards in a work folder that are whole by their checksum, by number; what is damaged or half-written is removed.

    Nothing where the folder is absent.
    """
    found: dict[int, Shard] = {}
    if not folder.is_dir():
        return found
    for path in sorted(folder.glob("*.json")):
        shard = _record(path)
        if shard is not None:
            found[shard.number] = shard
    wanted = {name for shard in found.values() for name in (shard.file, Path(shard.file).with_suffix(".json").name)}
    for path in folder.iterdir():
        if path.name not in wanted and path.name.removesuffix(".writing").endswith((".arrow", ".json")):
            path.unlink()
    return found


def _record(path: Path) -> Shard | None:
    try:
        shard = shard_of(read_json(path))
        file = path.with_suffix(".arrow")
        whole = shard.file == file.name and file.stat().st_size == shard.bytes and sha256(file) == shard.sha256
    except (OSError, IntegrityError):
        return None
    return shard if whole and _NAME.fullmatch(shard.file) else None


def _only(rows: Rows, indices: np.ndarray) -> Rows:
    cells = {name: taken(cell, indices) for name, cell in rows.cells.items()}
    return Rows(rows.seen[indices], rows.keys[indices], rows.views[indices], cells, rows.measured)


def _arrow(rows: Rows, layout: Layout) -> bytes:
    import pyarrow as pa

    arrays = [pa.array(rows.seen, pa.uint64()), pa.array(rows.keys, pa.uint64()), pa.array(rows.views, pa.uint32())]
    for cell in rows.cells.values():
        if isinstance(cell, Ragged):
            buffers = [None, pa.py_buffer(np.ascontiguousarray(cell.offsets, np.int64)), pa.py_buffer(cell.content)]
            arrays.append(pa.Array.from_buffers(pa.large_binary(), len(rows), buffers))
        else:
            kind = pa.binary(cell.shape[1])
            arrays.append(pa.Array.from_buffers(kind, len(rows), [None, pa.py_buffer(np.ascontiguousarray(cell))]))
    described = {"format": FORMAT, "layout": layout.plain(), "measured": dict(rows.measured)}
    fields = [pa.field(name, array.type, nullable=False) for name, array in zip((*FIRST, *rows.cells), arrays)]
    schema = pa.schema(fields, metadata={"decoct": json.dumps(described, sort_keys=True)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
    content = sink.getvalue().to_pybytes()
    assert isinstance(content, bytes)
    return content


def batch_of(path: Path, *, expected: str | None = None, validate: bool = True) -> pyarrow.RecordBatch:
    """The one record batch of an Arrow file, mapped into memory.

    `expected`: SHA-256 of the bytes that are mapped; `validate`: lengths and offsets of all columns are checked, so
    that no view leaves the file. IntegrityError otherwise.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            content = source.read_buffer()
        if expected is not None and sha256_of(content).hexdigest() != expected:
            raise IntegrityError(f"{path.name} is damaged: its SHA-256 differs from the one that was written")
        reader = pa.ipc.open_file(pa.BufferReader(content))
        if reader.num_record_batches != 1:
            raise IntegrityError(f"{path.name} holds {reader.num_record_batches} batches, not one")
        batch = reader.get_batch(0)
        if validate:
            batch.validate(full=True)
    except FileNotFoundError:
        raise IntegrityError(f"{path.name} is missing") from None
    except (OSError, pa.ArrowException) as error:
        raise IntegrityError(f"{path.name} is no Arrow file that decoct wrote: {error}") from None
    return batch


def described(path: Path) -> tuple[Layout, dict[str, float]]:
    """What a shard says of itself: its layout, and the sums over its measured rows."""
    try:
        found = parse_json((batch_of(path).schema.metadata or {})[b"decoct"], path.name, _Metadata)
        form, layout, measured = found["format"], found["layout"], dict(found["measured"])
    except (KeyError, IntegrityError):
        raise IntegrityError(f"{path.name} does not say what it holds: it is no shard that decoct wrote") from None
    if form != FORMAT:
        raise IntegrityError(f"{path.name} has the format {form}; this decoct reads {FORMAT}")
    return Layout.parse(layout), measured


def map_shard(path: Path, layout: Layout, *, expected: str | None = None, validate: bool = True) -> Mapped:
    """Views of the columns of a shard; IntegrityError where its schema is not that of `layout`."""
    import pyarrow as pa

    batch = batch_of(path, expected=expected, validate=validate)
    try:
        found = [(each.name, each.type) for each in batch.schema]
    except UnicodeDecodeError:
        raise IntegrityError(f"{path.name} is damaged: names of columns are no text") from None
    wanted = [(name, getattr(pa, kind)()) for name, kind in _NUMBERS]
    wanted += [(each.name, pa.large_binary() if each.mask else pa.binary(each.width)) for each in layout.columns]
    if found != wanted:
        raise IntegrityError(f"{path.name} has other columns than the store: {', '.join(name for name, _ in found)}")
    rows, arrays = batch.num_rows, batch.columns
    if any(array.null_count or array.offset for array in arrays):
        raise IntegrityError(f"{path.name} holds empty cells")
    seen, keys, views = (_numbers(array, rows) for array in arrays[:3])
    cells = {each.name: _view(array, rows, each.width) for each, array in zip(layout.columns, arrays[3:])}
    return Mapped(seen, keys, views, cells)


def _numbers(array: pyarrow.Array, rows: int) -> np.ndarray:
    dtype = np.uint32 if str(array.type) == "uint32" else np.uint64
    return np.frombuffer(array.buffers()[1], dtype, rows)


def _view(array: pyarrow.Array, rows: int, width: int) -> Cell:
    if str(array.type) != "large_binary":
        return np.frombuffer(array.buffers()[1], np.uint8, rows * width).reshape(rows, width)
    _, offsets, content = array.buffers()
    ends = np.frombuffer(offsets, np.int64, rows + 1)
    return Ragged(np.frombuffer(content, np.uint8) if content is not None else np.zeros(0, np.uint8), ends)
