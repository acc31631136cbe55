"""Data that stream: memory over the number of rows, texts and shards; CSV against pandas, tokens against `tokenizers`.

    python benchmarks/scale_stream.py [--rounds 3] [--rows 2000000] [--lines 200000] [--pictures 20000]

Each figure is of a fresh process. Memory: the peak of what belongs to the process alone (RssAnon, seen every 3 ms;
pages of mapped files, which the system takes back at will, do not count) beyond that after its imports, from opening
the data over statistics or vocabulary and the order of an epoch to 100 batches of 256. `cold` has an empty cache
folder, `warm` the one that it filled. CPU seconds of the process and its threads; pandas reads, decoct reads, makes
keys, splits and fingerprint. Vocabulary and tokens: WordPiece of 8,000 pieces and all texts encoded.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _shared import command, origin, parser, table, write
from PIL import Image

CHILD = """
import json, sys, threading, time
from pathlib import Path
import numpy as np, pandas, pyarrow.csv, pyarrow.compute, pyarrow.parquet, tokenizers, torch
import decoct.tasks.image_classification, decoct.tasks.tabular_classification, decoct.tasks.text_classification
from decoct.data.csv import CSV
from decoct.data.index import opened
from decoct.data.parquet_tables import ParquetTables
from decoct.data.sources import Batches
from decoct.data.tsv import TSV
from decoct.data.webdataset import WebDataset
from decoct.runner.opening import resolved
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.inputs.texts import encode
from decoct.tasks.inputs.tokenizers import WordPiece
from decoct.tasks.tabular_classification import TabularClassification
from decoct.tasks.text_classification import TextClassification

def own():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("RssAnon")).split()[1]) / 1024

most, ended = own(), False
def watch():
    global most
    while not ended:
        most = max(most, own())
        time.sleep(0.003)

def memory(use, path):
    base = own()
    threading.Thread(target=watch, daemon=True).start()
    data, task = {
        "csv": lambda: (CSV(path=path, target="y"), TabularClassification()),
        "parquet": lambda: (ParquetTables(path=path, target="y"), TabularClassification()),
        "tsv": lambda: (TSV(path=path), TextClassification()),
        "webdataset": lambda: (WebDataset(path=path, size=32), ImageClassification()),
    }[use]()
    start = time.process_time()
    found = opened(data)
    task = resolved(task, found)
    ready = time.process_time() - start
    for number, _ in enumerate(Batches(found.splits["train"], task.collate, batch_size=256, seed=0, prefetch=2)):
        if number == 100:
            break
    return {"peak": most - base, "ready": ready}

def table_read(way, path):
    base = own()
    threading.Thread(target=watch, daemon=True).start()
    start = time.process_time()
    kept = pandas.read_csv(path) if way == "pandas" else CSV(path=path, target="y").open()
    return {"cpu": time.process_time() - start, "peak": most - base}

def tokens(way, path):
    texts = [line.partition("\\t")[0] for line in Path(path).read_text().split("\\n")]
    start = time.process_time()
    if way == "decoct":
        encode(WordPiece(size=8000).resolve(texts), 128, texts)
        return {"cpu": time.process_time() - start}
    engine = tokenizers.BertWordPieceTokenizer()
    engine.train_from_iterator(texts, vocab_size=8000, show_progress=False)
    engine.enable_truncation(128)
    rows = [each.ids for each in engine.encode_batch(texts)]
    np.concatenate([np.array(row) for row in rows])
    return {"cpu": time.process_time() - start}

print(json.dumps(globals()[sys.argv[1]](*json.loads(sys.argv[2]))))
"""


def child(cache: Path, name: str, *arguments: Any) -> dict[str, float]:
    """What a fresh process measures."""
    words = [sys.executable, "-W", "ignore", "-c", CHILD, name, json.dumps(arguments)]
    given = {**os.environ, "DECOCT_CACHE": str(cache)}
    done = subprocess.run(words, capture_output=True, text=True, cwd=cache.parent, env=given)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, float] = json.loads(done.stdout)
    return found


def make_table(folder: Path, count: int) -> dict[str, Path]:
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    made = {f"c{at}": np.random.default_rng(at).normal(size=count).round(5) for at in range(12)}
    whole = pyarrow.table({**made, "y": np.where(made["c0"] > 0, "a", "b")})
    pyarrow.csv.write_csv(whole, folder / f"{count}.csv", pyarrow.csv.WriteOptions(quoting_style="none"))
    pyarrow.parquet.write_table(whole, folder / f"{count}.parquet", row_group_size=100_000)
    return {kind: folder / f"{count}.{kind}" for kind in ("csv", "parquet")}


def make_lines(folder: Path, count: int) -> Path:
    draws = np.random.default_rng(0).zipf(1.3, (count, 12)) % 30_000
    file = folder / f"{count}.tsv"
    file.write_text("\n".join(f"{' '.join(f'w{word}' for word in row)}\t{row[0] % 2}" for row in draws.tolist()))
    return file


def make_shards(folder: Path, count: int) -> Path:
    """Shards of 1,000 pictures of 32 pixels, of which 64 are unlike."""
    pictures = []
    for number in range(64):
        made = io.BytesIO()
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)).save(made, "png")
        pictures.append(made.getvalue())
    root = folder / f"shards{count}"
    root.mkdir()
    for split, size in (("train", count), ("val", 64), ("test", 64)):
        for start in range(0, size, 1000):
            with tarfile.open(root / f"{split}-{start // 1000:05}.tar", "w") as archive:
                for number in range(start, min(start + 1000, size)):
                    for ending, content in (("png", pictures[number % 64]), ("cls", str(number % 2).encode())):
                        entry = tarfile.TarInfo(f"{number:08}.{ending}")
                        entry.size = len(content)
                        archive.addfile(entry, io.BytesIO(content))
    return root


def memory(folder: Path, use: str, sizes: Sequence[int], paths: Sequence[Path]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    least: dict[str, float] = {}
    for size, path in zip(sizes, paths):
        cache = folder / f"cache-{use}-{size}"
        cells = [use, f"{size:,}"]
        for state in ("cold", "warm"):
            found = child(cache, "memory", use, str(path))
            least.setdefault(state, found["peak"])
            cells += [f"{found['peak']:.0f} ({found['peak'] / least[state]:.2f})", f"{found['ready']:.2f}"]
        rows.append(tuple(cells))
    return rows


def against(folder: Path, name: str, ways: tuple[str, str], path: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of both ways, interleaved."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, each in found.items():
            each.append(child(folder / "cache", name, way, str(path)))
    return {way: {key: statistics.median(e[key] for e in each) for key in each[0]} for way, each in found.items()}


def main() -> None:
    made = parser(__doc__)
    for name, default in (("rounds", 3), ("rows", 2_000_000), ("lines", 200_000), ("pictures", 20_000)):
        made.add_argument(f"--{name}", type=int, default=default)
    given = made.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = (100_000, given.rows)
        tables = [make_table(folder, size) for size in sizes]
        rows = [each for use in ("csv", "parquet") for each in memory(folder, use, sizes, [t[use] for t in tables])]
        sizes = (given.lines // 10, given.lines)
        rows += memory(folder, "tsv", sizes, [make_lines(folder, size) for size in sizes])
        sizes = (given.pictures // 10, given.pictures)
        rows += memory(folder, "webdataset", sizes, [make_shards(folder, size) for size in sizes])
        titles = ["data", "samples", "peak cold, MiB (of the smallest)", "ready, CPU s", "peak warm", "ready, CPU s"]
        lines = ["# Data that stream", "", "## Memory over the number of samples", "", *table(titles, rows), ""]
        size = 200_000
        matrix = size * 13 * 8 / 2**20
        found = against(folder, "table_read", ("pandas", "decoct"), make_table(folder, size)["csv"], given.rounds)
        rows = [
            (
                way,
                f"{each['cpu']:.2f}",
                f"{each['cpu'] / found['pandas']['cpu']:.2f}",
                f"{each['peak']:.0f}",
                f"{each['peak'] / matrix:.2f}",
            )
            for way, each in found.items()
        ]
        titles = ["reads", "CPU s", "of pandas'", "peak, MiB", f"of the matrix ({matrix:.0f} MiB)"]
        lines += [f"## CSV of {size:,} rows, 13 columns", "", *table(titles, rows), ""]
        path = make_lines(folder, given.lines // 4)
        found = against(folder, "tokens", ("tokenizers", "decoct"), path, given.rounds)
        rows = [
            (way, f"{each['cpu']:.2f}", f"{each['cpu'] / found['tokenizers']['cpu']:.2f}")
            for way, each in found.items()
        ]
        titles = ["vocabulary and tokens", "CPU s", "of tokenizers'"]
        lines += [f"## Vocabulary and tokens of {given.lines // 4:,} texts", "", *table(titles, rows), ""]
        lines += [command("scale_stream", given), "", origin(), ""]
    write("scale_stream", lines)


if __name__ == "__main__":
    main()
