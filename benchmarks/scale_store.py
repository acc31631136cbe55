"""Stores of more and more rows: seconds to open one, and milliseconds to read a batch of 128 drawn from all of it.

    python benchmarks/scale_store.py [--rows 50000000] [--batches 60]

Made rows of the most likely of 16 classes (7 bytes of answer a row), in shards of 8,192 rows as the label step writes
them; each size is opened in a process of its own. "first batch": the shards that it meets are mapped and parsed;
"batch": the median once every shard was met, in milliseconds of processor time, on which a neighbour's load weighs
less; "shard by shard": the same batches fetched in the way that suits few shards. "memory": what the process grew by,
pages of mapped files counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow  # noqa: F401 - loaded before a store is opened, so that opening is not measured with it
import torch
from _shared import command, interleaved, interval, origin, paired, parser, table, write

from decoct.artifact import writing
from decoct.outputs import Dense, Outputs
from decoct.store import reading
from decoct.store.codecs.top_k import TopKCodec
from decoct.store.finish import seal
from decoct.store.layout import Layout, Rows
from decoct.store.shards import packed, shard_name

SHARD, BATCH, CLASSES = 8192, 128, 16
MIXED = np.uint64(0x9E3779B97F4A7C15)
"""An odd number: multiplied by it, the numbers of rows are spread over all that `seen` can be."""


def make(folder: Path, rows: int) -> None:
    """A store of made rows; its shards are written without waiting for the disk."""
    codec = TopKCodec(k=1, dtype="float16", temperatures=(1.0,))
    layout = Layout.of(Outputs(Dense(torch.zeros(1, CLASSES))), codec)
    zeros = np.zeros(SHARD, np.uint64)
    said = Outputs(Dense(torch.randn(SHARD, CLASSES, generator=torch.Generator().manual_seed(0))))
    cells = layout.encode(said, seen=zeros, keys=zeros, views=zeros.astype(np.uint32), measure=False).cells
    work, done = folder / "work", {}
    work.mkdir(parents=True)
    for number, start in enumerate(range(0, rows, SHARD)):
        seen = np.arange(start, min(rows, start + SHARD), dtype=np.uint64) * MIXED
        part = {name: cell[: len(seen)] for name, cell in cells.items()}  # type: ignore[index]
        shard, content = packed(shard_name(number), Rows(seen, seen, np.zeros(len(seen), np.uint32), part), layout)
        (work / shard.file).write_bytes(content)
        done[shard.number] = shard
    with writing(folder / "store", kind="store", name="store") as draft:
        seal(draft, work, done, {})


def measure(folder: Path, rows: int, batches: int) -> dict[str, Any]:
    """Figures of one store, opened here for the first time."""
    torch.set_num_threads(1)
    before = psutil.Process().memory_info().rss
    found: dict[str, Any] = {}
    for verify in ("none", "lazy"):
        begun = time.perf_counter()
        store = reading.Store.open(folder / "store", verify=verify, cache_bytes=0)
        found[verify] = time.perf_counter() - begun
    draws = np.random.default_rng(0)

    def batch() -> np.ndarray:
        return draws.integers(0, rows, BATCH).astype(np.uint64) * MIXED

    def read(few: int) -> float:
        wanted, reading.FEW = batch(), few
        begun = time.process_time()
        store.read(wanted)
        return time.process_time() - begun

    few = reading.FEW
    begun = time.process_time()
    store.read(batch())
    found["first"] = time.process_time() - begun
    for start in range(0, rows, SHARD):
        store.read(np.array([start], np.uint64) * MIXED)
    times = interleaved({"ours": lambda: read(few), "by shard": lambda: read(0)}, batches)
    grown = psutil.Process().memory_info().rss - before
    return {**found, "times": times, "memory": grown}


def row(rows: int, found: dict[str, Any]) -> list[str]:
    """A line of the table."""
    ours, other = found["times"]["ours"], found["times"]["by shard"]
    return [
        f"{rows:,}",
        f"{found['none']:.2f}",
        f"{found['lazy']:.2f}",
        f"{1e3 * found['first']:.0f}",
        interval(ours).text(".2f", 1e3),
        f"{1e3 * statistics.median(other):.2f}",
        paired(ours, other, "ratio").text(".2f"),
        f"{found['memory'] / 1e6:,.0f}",
    ]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--rows", type=int, default=50_000_000)
    made.add_argument("--batches", type=int, default=60)
    made.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = made.parse_args()
    if given.folder is not None:
        print(json.dumps(measure(given.folder, given.rows, given.batches)))
        return
    lines = []
    for rows in (given.rows // 100, given.rows // 10, given.rows):
        with tempfile.TemporaryDirectory() as name:
            make(Path(name), rows)
            words = ["--rows", rows, "--batches", given.batches, "--folder", name]
            done = subprocess.run([sys.executable, __file__, *map(str, words)], stdout=subprocess.PIPE, check=True)
            lines.append(row(rows, json.loads(done.stdout)))
    titles = ["rows", "open unchecked, s", "open, s", "first batch, ms", "batch, ms", "shard by shard, ms", "ratio"]
    about = (__doc__ or "").strip().splitlines()
    text = ["# Large stores", "", *about, "", *table([*titles, "memory, MB"], lines), "", command("scale_store", given)]
    write("scale_store", [*text, "", origin(), ""])


if __name__ == "__main__":
    main()
