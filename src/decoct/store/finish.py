"""Sealing: finished shards become a store; whole shards of a damaged store are used again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from decoct.artifact import Draft, read_manifest, sha256, write_whole
from decoct.errors import DataError, IntegrityError
from decoct.store.layout import Layout
from decoct.store.shards import FORMAT, Shard, described, is_shard, map_shard, number_of, write_record

SHARDS = "shards"
INDEX = "index.arrow"
STORE = "store.json"
ROW_BITS = 32
"""A location is shard's place in the table · 2^32 + row."""


def seal(draft: Draft, work: Path, shards: Mapping[int, Shard], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Fills the draft of an artifact of kind "store" with the shards in `work` and returns its statistics.

    Of rows with an equal `seen` the first is kept. Statistics: `rows`, `dropped` rows, `bytes` of all files,
    `bytes_per_sample`, `kl` in nats and `kept_mass`, means over the measured rows (None where there are none).
    DataError where shards have several layouts, or equal `seen` stand for unlike samples.
    """
    table = [shard for _, shard in sorted(shards.items())]
    if not table:
        raise DataError("a store of no shards: there was nothing to label")
    layout, _ = described(work / table[0].file)
    if any(shard.layout != layout.digest() for shard in table):
        raise DataError(f"shards in {work} have several layouts; remove the folder and label again")
    (draft.folder / SHARDS).mkdir()
    for shard in table:
        _link(work / shard.file, draft.folder / SHARDS / shard.file)
    seen, locations = _index(draft.folder / SHARDS, table, layout)
    write_whole(draft.folder / INDEX, _index_bytes(seen, locations))
    rows = sum(shard.rows for shard in table)
    size = sum(shard.bytes for shard in table) + (draft.folder / INDEX).stat().st_size
    statistics: dict[str, Any] = {"rows": len(seen), "dropped": rows - len(seen), **_means(table)}
    statistics |= {"bytes": size, "bytes_per_sample": size / len(seen)}
    content = {"format": FORMAT, "layout": layout.plain(), "shards": [each.plain() for each in table]}
    draft.write_json(STORE, {**content, "statistics": statistics, "meta": dict(meta)})
    return statistics


def damaged_shards(folder: Path) -> list[int]:
    """Numbers of the shards of a store that are missing or differ from its manifest.

    IntegrityError where the manifest itself is missing or damaged: then nothing can be trusted.
    """
    found = []
    for name, expected in sorted(_shards(folder).items()):
        path = folder / name
        if not path.is_file() or path.stat().st_size != expected["bytes"] or sha256(path) != expected["sha256"]:
            found.append(number_of(path.name))
    return found


def salvage(folder: Path, work: Path) -> dict[int, Shard]:
    """Puts the whole shards of a store into a work folder, as if they had been written there, and names them by number.

    Nothing is found where the store has no manifest that can be trusted.
    """
    try:
        known = _shards(folder)
    except IntegrityError:
        return {}
    wrong, found = set(damaged_shards(folder)), {}
    work.mkdir(parents=True, exist_ok=True)
    for name, expected in sorted(known.items()):
        if number_of(Path(name).name) in wrong:
            continue
        try:
            layout, measured = described(folder / name)
            rows = len(map_shard(folder / name, layout))
        except IntegrityError:  # a whole file that is no shard
            continue
        shard = Shard(Path(name).name, rows, expected["bytes"], expected["sha256"], layout.digest(), measured)
        (work / shard.file).unlink(missing_ok=True)
        _link(folder / name, work / shard.file)
        write_record(work, shard)
        found[shard.number] = shard
    return found


def _shards(folder: Path) -> dict[str, dict[str, Any]]:
    files = read_manifest(folder)["files"]
    found = {name: each for name, each in files.items() if name.startswith(f"{SHARDS}/")}
    for name in found:
        if not is_shard(name.removeprefix(f"{SHARDS}/")):
            raise IntegrityError(f"{folder}: {name} is no name of a shard; the manifest is none that decoct wrote")
    return found


def _link(source: Path, target: Path) -> None:
    """One file under a second name; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _index(folder: Path, table: list[Shard], layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Sorted `seen`, and the location of each."""
    parts = [map_shard(folder / shard.file, layout, expected=shard.sha256) for shard in table]
    seen = np.concatenate([part.seen for part in parts])
    keys = np.concatenate([part.keys for part in parts])
    views = np.concatenate([part.views for part in parts])
    locations = np.concatenate(
        [np.arange(len(part), dtype=np.uint64) + np.uint64(i << ROW_BITS) for i, part in enumerate(parts)]
    )
    order = np.argsort(seen, kind="stable")
    seen, keys, views, locations = seen[order], keys[order], views[order], locations[order]
    new = np.r_[True, seen[1:] != seen[:-1]]
    unlike = ~new[1:] & ((keys[1:] != keys[:-1]) | (views[1:] != views[:-1]))
    if unlike.any():
        first = seen[1:][unlike][0]
        raise DataError(f"{int(unlike.sum())} rows have one `seen` and unlike key or view, as {int(first):#018x}")
    return seen[new], locations[new]


def _index_bytes(seen: np.ndarray, locations: np.ndarray) -> bytes:
    import pyarrow as pa

    batch = pa.RecordBatch.from_pydict({"seen": pa.array(seen), "location": pa.array(locations)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content = sink.getvalue().to_pybytes()
    assert isinstance(content, bytes)
    return content


def _means(table: list[Shard]) -> dict[str, float | None]:
    rows = sum(shard.measured.get("rows", 0.0) for shard in table)
    names = ("kl", "kept_mass")
    return {name: sum(s.measured.get(name, 0.0) for s in table) / rows if rows else None for name in names}
