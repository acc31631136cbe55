"""The main comparisons: teacher, student alone and student distilled, on the exported files, over several seeds.

    python benchmarks/evidence.py fashion_mnist --data DIR [--seeds 5] [--out runs/fashion_mnist] [key=value ...]
    python benchmarks/evidence.py --summarize runs/fashion_mnist

The first runs a shipped recipe (what is done already is skipped); both write benchmarks/results/NAME.md with the table,
the sentences of the page, command, machine, date and commit. Data sets lie in $DECOCT_DATA, or in --data.
"""

from __future__ import annotations

import datetime
import json
import shlex
import subprocess
import sys
from pathlib import Path

from _shared import ROOT, commit, data_folder, parser, table, write

import decoct as dc
from decoct.report.sentence import sentences
from decoct.report.table import rows

FOLDERS = {
    "fashion_mnist": "fashion-mnist",
    "fashion_mnist_few_labels": "fashion-mnist",
    "fashion_mnist_compressed": "fashion-mnist",
    "cifar10_compressed": "cifar10-subset",
    "sst2": "sst2",
    "sst2_compressed": "sst2",
    "credit_default": "credit-default",
    "california_housing": "california-housing",
    "camvid": "camvid",
    "bccd": "bccd/BCCD",
    "wnut17": "wnut17",
}


def run(name: str, data: Path | None, out: Path, seeds: int, settings: list[str]) -> None:
    """Runs the shipped recipe `name` through the command."""
    words = [
        sys.executable,
        "-m",
        "decoct.cli.app",
        "run",
        f"recipes/{name}.yaml",
        "--out",
        str(out),
        "--seeds",
        str(seeds),
        *settings,
    ]
    where = [] if data is None else [f"data.path={data}"]
    subprocess.run([*words, *where], check=True, cwd=ROOT)


def summary(name: str, folder: Path, command: str, note: str) -> list[str]:
    """The Markdown of a finished run."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    found = rows(results)
    titles = list(found[0])
    machine = results["machine"]
    return [
        f"# {name}",
        "",
        *table(titles, ([row[title] for title in titles] for row in found)),
        "",
        *(f"- {sentence}" for sentence in sentences(results)),
        *_comparisons(results),
        "",
        *(_speeds(folder, results) if name.endswith("_compressed") else []),
        f"Command: `{command}`" + (f" ({note})" if note else ""),
        "",
        f"Machine: {machine.get('cpu', machine)}, {machine.get('cores', '?')} cores, shared. Date: "
        f"{datetime.date.today()}. Commit: {commit()}. Versions: "
        + ", ".join(f"{key} {value}" for key, value in results["versions"].items())
        + ".",
        "",
    ]


def _speeds(folder: Path, results: dict) -> list[str]:
    """Latency of each file at 1 and 2 threads and at batch 1 and 16, interleaved, beside the teacher's."""
    files = {each["name"]: folder / each["artifact"] for each in results["models"]}
    settings = [(threads, batch) for threads in (1, 2) for batch in (1, 16)]
    found = {each: dc.benchmark(files, threads=each[0], batch=each[1], repeats=200) for each in settings}
    titles = [f"{threads} thread{'s' * (threads > 1)}, batch {batch}" for threads, batch in settings]
    lines = []
    for name in files:
        cells = []
        for each in settings:
            own, teacher = (found[each][key]["latency"]["p50_ms"] for key in (name, "teacher"))
            cells.append(f"{1e3 * own:.1f} µs ({teacher / own:.1f})")
        lines.append((name, *cells))
    return [
        "Latency of the files in ONNX Runtime, median of 200 interleaved calls (times faster than the teacher's):",
        "",
        *table(["file", *titles], lines),
        "",
    ]


def _comparisons(results: dict) -> list[str]:
    found = []
    for each in results["comparisons"]:
        differences = ", ".join(f"{value:+.4f}" for value in each["differences"])
        interval = "no interval" if each["low"] is None else f"95 % interval {each['low']:+.4f} to {each['high']:+.4f}"
        found.append(
            f"- {each['better']} against {each['than']}, {each['metric']}, paired by seed: {differences}; "
            f"mean {each['mean']:+.4f}, {interval}, n = {each['n']}."
        )
    return found


def main() -> None:
    made = parser(__doc__)
    made.add_argument("name", nargs="?", default="credit_default", choices=[*FOLDERS])
    made.add_argument("settings", nargs="*")
    made.add_argument("--data", type=Path)
    made.add_argument("--out", type=Path)
    made.add_argument("--seeds", type=int, default=5)
    made.add_argument("--summarize", type=Path)
    made.add_argument("--note", default="")
    given = made.parse_args()
    out = given.summarize or (given.out or ROOT / "runs" / given.name).resolve()
    data = data_folder(given.data, FOLDERS[given.name])
    if given.summarize is None:
        run(given.name, data, out, given.seeds, given.settings)
    words = ["python", "benchmarks/evidence.py", given.name, "--seeds", str(given.seeds), *given.settings]
    write(given.name, summary(given.name, out, shlex.join(words), given.note))


if __name__ == "__main__":
    main()
