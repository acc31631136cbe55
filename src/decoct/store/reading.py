"""Store: a teacher's stored answers, found by what a sample looks like and read at the speed of memory."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

import numpy as np
import torch

from decoct.artifact import Strict, damaged, read_json, read_manifest, sha256
from decoct.errors import DataError, IntegrityError
from decoct.outputs import Outputs
from decoct.store.columns import Cell, Ragged, joined, taken
from decoct.store.finish import INDEX, ROW_BITS, SHARDS, STORE
from decoct.store.layout import Layout
from decoct.store.shards import FORMAT, Mapped, Shard, batch_of, map_shard, shard_of

Verify = Literal["all", "lazy", "index", "none"]
REPAIR = "run the label step again: it recomputes damaged shards alone"
CACHE_BYTES = 64 * 2**20
BLOCK = 2**20
"""Rows of the index that are looked at in one go."""
FEW = 3
"""Up to so many rows of a batch a shard, they are fetched one by one: in a large store nearly each lies in another."""
_ROW = np.uint64((1 << ROW_BITS) - 1)


class Table(Strict):
    """Shape of store.json."""

    format: int
    layout: dict[str, Any]
    meta: dict[str, Any]
    statistics: dict[str, Any]
    shards: list[dict[str, Any]]


class Store:
    """A store, opened; use `Store.open`.

    `layout` what it keeps of each sample; `meta` what the label step wrote; `statistics` of `seal`; `folder`.
    Files are mapped, so several processes share them; a pickled Store opens the files again where it arrives.
    """

    def __init__(self, folder: Path, content: Mapping[str, Any], *, verify: Verify, cache_bytes: int) -> None:
        self.folder = folder
        self.layout = Layout.parse(content["layout"])
        self.meta: Mapping[str, Any] = MappingProxyType(content["meta"])
        self.statistics: Mapping[str, Any] = MappingProxyType(content["statistics"])
        self._verify, self._cache_bytes = verify, cache_bytes
        self._table = [shard_of(each) for each in content["shards"]]
        self._mapped: list[Mapped | None] = [None] * len(self._table)
        self._seen, self._locations = _index(folder / INDEX, self._table, verify)
        self._cached: Outputs | None = None
        self._caches: bool | None = None if not self.layout.ragged and len(self) and cache_bytes else False

    @classmethod
    def open(cls, folder: Path | str, *, verify: Verify = "all", cache_bytes: int = CACHE_BYTES) -> Store:
        """The store in `folder`.

        `verify`: "all" checks the SHA-256 of every file now; "lazy" that of each shard when it is first used; "index"
        that of the table and the index alone; "none" nothing. A store that takes no more than
        `cache_bytes` once decoded is kept so in memory, unless it is ragged. IntegrityError names every damaged file.
        """
        folder = Path(folder)
        files = read_manifest(folder)["files"]
        wrong = [] if verify == "none" else _wrong(folder, None if verify == "all" else (INDEX, STORE))
        if wrong:
            raise IntegrityError(f"{folder}: {'; '.join(wrong)}; {REPAIR}")
        if STORE not in files:
            raise DataError(f"{folder} holds no store; name a folder that the label step wrote")
        content = _content(folder / STORE)
        if content["format"] != FORMAT:
            raise DataError(f"{folder} has the format {content['format']}, this decoct reads {FORMAT}; label again")
        return cls(folder, content, verify=verify, cache_bytes=cache_bytes)

    def __reduce__(self) -> tuple[Any, ...]:
        verify = "index" if self._verify == "all" else self._verify
        return _opened, (str(self.folder), verify, self._cache_bytes)

    def __len__(self) -> int:
        return len(self._seen)

    @property
    def seen(self) -> np.ndarray:
        """All `seen` uint64 `[N]`, ascending; read-only."""
        return self._seen

    def contains(self, seen: Any) -> np.ndarray:
        """bool `[B]`: whether the store holds each."""
        wanted = np.asarray(seen, np.uint64)
        return self._places(wanted)[1]

    def find(self, seen: Any) -> np.ndarray:
        """int64 positions `[B]` in the order of ascending `seen`; DataError counts and names those that are absent."""
        wanted = np.asarray(seen, np.uint64)
        places, found = self._places(wanted)
        if not found.all():
            absent = wanted[~found]
            first = ", ".join(f"{int(each):#018x}" for each in absent[:3])
            raise DataError(
                f"{self.folder} holds no answer for {len(absent)} of {len(wanted)} samples ({first}"
                f"{', ...' if len(absent) > 3 else ''}): it was made from other data, other views or another seed; "
                "label with the data, views and seed of this run"
            )
        return places

    def _places(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if len(self._seen) == 0:
            return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
        places = self._seen.searchsorted(wanted)
        np.minimum(places, len(self._seen) - 1, out=places)
        return places, self._seen[places] == wanted

    def read(self, seen: Any, *, length: int | None = None) -> Outputs:
        """What the teacher said of samples uint64 `[B]`, on the CPU.

        Ragged logits are padded to `length` positions, or to those of the longest sample. DataError where samples are
        absent; IntegrityError, in the mode "lazy", before a row of a damaged shard is used.
        """
        places = self.find(seen)
        if self._caches is None:
            one = self.layout.decode(self._cells(np.zeros(1, np.int64)))
            self._caches = _bytes(one) * len(self) <= self._cache_bytes
        if not self._caches:
            return self.layout.decode(self._cells(places), length)
        if self._cached is None:
            self._cached = self.layout.decode(self._cells(np.arange(len(self))))
        return self._cached.take(torch.from_numpy(places), len(self))

    def _cells(self, places: np.ndarray) -> dict[str, Cell]:
        locations = self._locations[places]
        shards, rows = (locations >> np.uint64(ROW_BITS)).astype(np.int64), (locations & _ROW).astype(np.int64)
        used = np.unique(shards).tolist()
        if self._verify == "lazy":
            self._check(used)
        if len(used) <= 1:
            cells = self._shard(used[0] if used else 0).cells
            return {name: taken(cell, rows) for name, cell in cells.items()}
        if FEW * len(used) > len(rows):
            found = {number: self._shard(number).cells for number in used}
            each = [found[number] for number in shards.tolist()]
            if not any(isinstance(cell, Ragged) for cell in each[0].values()):
                return _row_by_row(each, rows)
        order = np.lexsort((rows, shards))
        ends = np.searchsorted(shards[order], [*used, used[-1] + 1]).tolist()
        parts = [order[start:end] for start, end in pairwise(ends)]
        sources = [self._shard(number).cells for number in used]
        return {name: _gathered([cells[name] for cells in sources], parts, rows) for name in sources[0]}

    def _check(self, shards: list[int]) -> None:
        """Maps shards that were not used yet and names every damaged one among them."""
        wrong = []
        for number in shards:
            try:
                self._shard(number)
            except IntegrityError as error:
                wrong.append(f"{SHARDS}/{error}")
        if wrong:
            raise IntegrityError(f"{self.folder}: {'; '.join(wrong)}; {REPAIR}")

    def _shard(self, number: int) -> Mapped:
        found = self._mapped[number]
        if found is None:
            shard = self._table[number]
            lazy = self._verify == "lazy"
            path = self.folder / SHARDS / shard.file
            found = map_shard(path, self.layout, expected=shard.sha256 if lazy else None, validate=True)
            if len(found) != shard.rows:
                raise IntegrityError(f"{shard.file} has {len(found)} rows, {shard.rows} were written; {REPAIR}")
            self._mapped[number] = found
        return found


def _gathered(cells: list[Cell], parts: list[np.ndarray], rows: np.ndarray) -> Cell:
    """Rows of several shards: `parts` says for each which samples of the batch it holds."""
    first = cells[0]
    if isinstance(first, Ragged):
        back = np.empty(len(rows), np.int64)
        back[np.concatenate(parts)] = np.arange(len(rows))
        return taken(joined([taken(cell, rows[part]) for cell, part in zip(cells, parts)]), back)
    full = np.empty((len(rows), first.shape[1]), np.uint8)
    for cell, part in zip(cells, parts):
        assert not isinstance(cell, Ragged)
        full[part] = np.take(cell, rows[part], axis=0)
    return full


def _row_by_row(cells: list[Mapping[str, Cell]], rows: np.ndarray) -> dict[str, Cell]:
    """Rows of shards that hold hardly more than one of a batch's each: `cells` of the shard of each row."""
    wanted = rows.tolist()
    found: dict[str, Cell] = {}
    for name, first in cells[0].items():
        assert not isinstance(first, Ragged)
        full = np.empty((len(rows), first.shape[1]), np.uint8)
        columns = [cast(np.ndarray, each[name]) for each in cells]
        for place, (column, row) in enumerate(zip(columns, wanted)):
            full[place] = column[row]
        found[name] = full
    return found


def _opened(folder: str, verify: Verify, cache_bytes: int) -> Store:
    return Store.open(folder, verify=verify, cache_bytes=cache_bytes)


def _wrong(folder: Path, names: tuple[str, ...] | None) -> list[str]:
    """What differs from the manifest, of all files or of `names`."""
    if names is None:
        return damaged(folder)
    files = read_manifest(folder)["files"]
    paths = [folder / name for name in names if name in files]
    bad = [path for path in paths if not path.is_file() or sha256(path) != files[path.name]["sha256"]]
    return [f"{path.name} is missing or damaged" for path in bad]


def _content(path: Path) -> dict[str, Any]:
    """A store's table; IntegrityError where it has not the parts that `seal` wrote."""
    try:
        found: dict[str, Any] = read_json(path, Table)
    except (OSError, IntegrityError) as error:
        raise IntegrityError(f"{path} is no table that decoct wrote ({error}); {REPAIR}") from None
    return found


def _index(path: Path, table: list[Shard], verify: Verify) -> tuple[np.ndarray, np.ndarray]:
    """`seen`, ascending, and the location of each; IntegrityError where a location is none of the table's rows.

    Columns are looked at always, rows unless `verify` is "none".
    """
    batch = batch_of(path, validate=verify != "none")
    columns = [(each.name, str(each.type)) for each in batch.schema]
    if columns != [("seen", "uint64"), ("location", "uint64")] or any(c.null_count or c.offset for c in batch.columns):
        raise IntegrityError(f"{path} has other columns than an index; {REPAIR}")
    seen, locations = (np.frombuffer(each.buffers()[1], np.uint64, len(each)) for each in batch.columns)
    if verify != "none":
        rows = np.array([*(each.rows for each in table), 0], np.uint64)
        for start in range(0, len(seen), BLOCK):
            part, some = locations[start : start + BLOCK], seen[start : start + BLOCK + 1]
            shards = np.minimum(part >> np.uint64(ROW_BITS), np.uint64(len(table)))
            if (part & _ROW >= rows[shards]).any() or (some[1:] <= some[:-1]).any():
                raise IntegrityError(f"{path} is no index of this store's shards; {REPAIR}")
    return seen, locations


def _bytes(outputs: Outputs) -> int:
    """Bytes of all tensors."""
    return sum(each.numel() * each.element_size() for each in outputs.tensors())
