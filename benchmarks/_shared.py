"""What the benchmarks share: their arguments, ways timed in turn, intervals, tables, and where the figures come from.

A benchmark that trains models (several seeds, a recipe, quality):

    given = arguments(__doc__, "guided", seeds=3, steps=400)
    run = recipe(...).run(given.out, seeds=given.seeds, watch=watch)
    write("guided", [..., *table(titles, rows), ..., command("guided", given), "", origin(run.results), ""])

A benchmark that times ways of doing one thing:

    times = interleaved({"bare": ..., "ours": ...}, rounds=15)
    ratio = paired(times["ours"], times["bare"], how="ratio")   # median of paired ratios with its 95 % interval
    write("step_cost", [..., command("step_cost", given), "", origin(), ""])

The file's name starts with an underscore, so `make bench` does not run it.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from decoct.meters.machine import machine

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


# Arguments.


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser that shows the file's docstring as its help."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def arguments(doc: str | None, name: str, **numbers: int) -> argparse.Namespace:
    """What a benchmark on Fashion-MNIST was called with: `--data`, `--out`, and whole numbers with their defaults.

    `data` is --data, else the folder in $DECOCT_DATA, else None; `out` is runs/NAME by default.
    """
    made = parser(doc)
    made.add_argument("--data", type=Path)
    made.add_argument("--out", type=Path, default=ROOT / "runs" / name)
    for each, default in numbers.items():
        made.add_argument(f"--{each}", type=int, default=default)
    given = made.parse_args()
    given.data = data_folder(given.data, "fashion-mnist")
    return given


def data_folder(given: Path | None, name: str) -> Path | None:
    """The folder that was given, else $DECOCT_DATA/NAME, else None."""
    if given is None and os.environ.get("DECOCT_DATA"):
        return Path(os.environ["DECOCT_DATA"]) / name
    return given


def watch(event: Any) -> None:
    """Prints the steps of a run as they are finished."""
    if event["event"] in ("done", "skipped"):
        print(event["step"], event["seed"], event["event"], event.get("scores", ""), flush=True)


# Time.


def interleaved(
    ways: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each way in each round; all ways in every round, so that a neighbour's load falls on all alike.

    The order turns by one from round to round. A way that returns a float has timed itself, and that is taken.
    `clock`: `time.process_time` counts the CPU time of this process alone.

    >>> list(interleaved({"a": lambda: 1.0, "b": lambda: 2.0}, 2).values())
    [[1.0, 1.0], [2.0, 2.0]]
    """
    names = list(ways)
    for name in names:
        for _ in range(warmup):
            ways[name]()
    found: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            begun = clock()
            own = ways[name]()
            found[name].append(own if isinstance(own, float) else clock() - begun)
    return found


def cpu_or_wall(threads: int) -> Callable[[], float]:
    """With one thread the CPU time of the process, on which a neighbour's load weighs little; with more the wall."""
    return time.process_time if threads == 1 else time.perf_counter


@dataclass(frozen=True)
class Interval:
    """A median with its 95 % interval (without assumptions on the distribution); the ends are None for under 6."""

    median: float
    low: float | None
    high: float | None
    n: int

    def text(self, form: str = ".3f", scale: float = 1.0) -> str:
        """As "1.012 (1.008 to 1.020)"."""
        middle = format(scale * self.median, form)
        if self.low is None or self.high is None:
            return middle
        return f"{middle} ({format(scale * self.low, form)} to {format(scale * self.high, form)})"


def interval(values: Iterable[float]) -> Interval:
    """The median, and the two of the sorted values between which the true median lies in at least 95 of 100 cases.

    >>> interval(range(1, 11))
    Interval(median=5.5, low=2, high=9, n=10)
    """
    ordered = sorted(values)
    n = len(ordered)
    outside, below = 0, 0.0
    while outside < n and (below := below + math.comb(n, outside) / 2**n) <= 0.025:
        outside += 1
    low, high = (ordered[outside - 1], ordered[n - outside]) if outside else (None, None)
    return Interval(statistics.median(ordered), low, high, n)


def paired(own: Sequence[float], base: Sequence[float], how: Literal["difference", "ratio"] = "difference") -> Interval:
    """The median over rounds of own − base or own / base, both of the same round.

    >>> paired([2.0, 4.0], [1.0, 2.0], "ratio").median
    2.0
    """
    pairs = zip(own, base, strict=True)
    return interval(a / b if how == "ratio" else a - b for a, b in pairs)


# Quality, from the results of a run.


def accuracy(results: Mapping[str, Any], name: str) -> str:
    """Mean and deviation over seeds, in percent."""
    one = next(each for each in results["models"] if each["name"] == name)
    spread = one.get("quality_sd", {}).get("accuracy")
    return f"{100 * one['quality']['accuracy']:.2f}" + (f" ± {100 * spread:.2f}" if spread is not None else "")


def difference(results: Mapping[str, Any], name: str, than: str) -> str:
    """The difference in points, paired by seed, with its 95 % interval; a dash where it was not compared."""
    for each in results["comparisons"]:
        if (each["better"], each["than"]) == (name, than):
            text = f"{100 * each['mean']:+.2f}"
            return text if each["low"] is None else f"{text} ({100 * each['low']:+.2f} to {100 * each['high']:+.2f})"
    return "–"


# Pages.


def table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines of a Markdown table.

    >>> table(["a", "b"], [(1, 2)])
    ['| a | b |', '|---|---|', '| 1 | 2 |']
    """
    written = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles), *written]


def command(name: str, given: argparse.Namespace) -> str:
    """The sentence with the command: all settings of `given` but folders.

    >>> command("heap", argparse.Namespace(rounds=5, out=None))
    'Command: `python benchmarks/heap.py --rounds 5`.'
    """
    words = []
    for key, value in vars(given).items():
        option = f"--{key.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif value is not False and not isinstance(value, Path | None):
            words.append(f"{option} {value}")
    return f"Command: `{' '.join(['python', f'benchmarks/{name}.py', *words])}`."


def commit() -> str:
    """The commit that is checked out, in short."""
    words = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def origin(results: Mapping[str, Any] | None = None) -> str:
    """The sentence on machine, load, date, commit and torch; of a finished run, or of this process."""
    facts = machine() if results is None else results["machine"]
    versions = facts["versions"] if results is None else results["versions"]
    cores = facts.get("logical_cores") or facts.get("cores")
    load = "" if results is not None else f", load average {psutil.getloadavg()[0]:.1f}"
    return (
        f"Machine: {facts.get('cpu')}, {cores} cores, shared{load}. Date: {datetime.date.today()}. "
        f"Commit: {commit()}. torch {versions['torch']}."
    )


def write(name: str, lines: Sequence[str], folder: Path = RESULTS) -> None:
    """Writes NAME.md, and prints it."""
    text = "\n".join(lines)
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)
