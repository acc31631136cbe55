"""Curves of a run's log: losses by term, weights, learning rates and validation scores, thinned for drawing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from decoct.artifact import parse_json
from decoct.errors import IntegrityError
from decoct.report.thinning import thinned_lines

LOG = "log.jsonl"
TOTAL = "total"


@dataclass
class Curve:
    """The values of one quantity `name` over the optimizer steps of one recipe step and seed."""

    step: str
    seed: int
    name: str
    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)

    def varies(self) -> bool:
        """Whether the values differ by more than rounding."""
        low, high = min(self.y), max(self.y)
        return high - low > 1e-9 * max(abs(low), abs(high))


@dataclass
class Log:
    """The curves of a log by kind, in the order of appearance; `lost` counts lines and values that were unreadable."""

    losses: list[Curve] = field(default_factory=list)
    weights: list[Curve] = field(default_factory=list)
    agreement: list[Curve] = field(default_factory=list)
    say: list[Curve] = field(default_factory=list)
    rates: list[Curve] = field(default_factory=list)
    validation: list[Curve] = field(default_factory=list)
    lost: int = 0

    def steps(self) -> list[str]:
        """The recipe steps that logged losses."""
        return list(dict.fromkeys(curve.step for curve in self.losses))


class _Reader:
    def __init__(self) -> None:
        self.log = Log()
        self.known: dict[tuple[str, str, int, str], Curve] = {}
        self.counts: dict[tuple[str, int, str], int] = {}

    def add(self, kind: str, record: Mapping[str, Any], at: float, name: str, value: Any) -> None:
        if not _is_number(value):
            self.log.lost += value is not None
            return
        key = (kind, str(record.get("step", "")), _integer(record.get("seed")), name)
        curve = self.known.get(key)
        if curve is None:
            curve = self.known[key] = Curve(*key[1:])
            getattr(self.log, kind).append(curve)
        curve.x.append(at)
        curve.y.append(float(value))

    def read(self, record: Mapping[str, Any]) -> None:
        kind = record.get("kind")
        if kind not in {"train", "validation"}:
            return
        at = self._position(record, str(kind))
        if kind == "validation":
            for name, value in _mapping(record.get("scores")).items():
                self.add("validation", record, at, name, value)
            return
        self.add("losses", record, at, TOTAL, record.get("loss"))
        self.add("rates", record, at, "lr", record.get("lr"))
        for kinds, values in (("losses", record.get("terms")), ("weights", record.get("weights"))):
            for name, value in _mapping(values).items():
                kind, _, role = name.partition(".")
                if kinds == "losses" and kind in ("agreement", "say"):
                    self.add(kind, record, at, role, value)
                else:
                    self.add(kinds, record, at, name, value)

    def _position(self, record: Mapping[str, Any], kind: str) -> float:
        place = (str(record.get("step", "")), _integer(record.get("seed")), kind)
        self.counts[place] = self.counts.get(place, 0) + 1
        for name in ("step_number", "at", "epoch"):
            if _is_number(record.get(name)):
                return float(record[name])
        return float(self.counts[place])


def read_log(folder: Path) -> Log:
    """The curves of the run in `folder`; empty where it has no log. Unknown kinds and torn lines are passed over."""
    path, reader = Path(folder) / LOG, _Reader()
    if not path.is_file():
        return reader.log
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in thinned_lines(file):
            try:
                record = parse_json(line, LOG)
            except IntegrityError:
                reader.log.lost += bool(line.strip())
                continue
            if isinstance(record, dict):
                reader.read(record)
    for curve in reader.known.values():
        _order(curve)
    return reader.log


def thinned(curve: Curve, limit: int) -> Curve:
    """The curve with at most `limit` of its points, those that keep its shape."""
    kept = largest_triangles(curve.x, curve.y, limit)
    return Curve(curve.step, curve.seed, curve.name, [curve.x[i] for i in kept], [curve.y[i] for i in kept])


def largest_triangles(x: Sequence[float], y: Sequence[float], limit: int) -> list[int]:
    """Ascending indices of at most `limit` (>= 2) points, the first and the last among them.

    Of each of `limit` - 2 buckets the point is kept that spans the largest triangle with the point kept before and the
    mean of the next bucket. Steinarsson, Downsampling time series for visual representation, 2013 (LTTB).

    >>> largest_triangles([0, 1, 2, 3, 4, 5], [0, 0, 9, 0, 0, 0], 3)
    [0, 2, 5]
    """
    count = len(x)
    if limit < 2:
        raise ValueError(f"limit = {limit}; at least 2 points are kept")
    if count <= limit:
        return list(range(count))
    edges = [1 + (count - 2) * bucket // (limit - 2) for bucket in range(limit - 1)] if limit > 2 else []
    edges += [count]
    kept = [0]
    for start, end, after in zip(edges, edges[1:], edges[2:]):
        mean_x, mean_y = sum(x[end:after]) / (after - end), sum(y[end:after]) / (after - end)
        last_x, last_y = x[kept[-1]], y[kept[-1]]

        def area(i: int, mx: float = mean_x, my: float = mean_y, lx: float = last_x, ly: float = last_y) -> float:
            return abs((lx - mx) * (y[i] - ly) - (lx - x[i]) * (my - ly))

        kept.append(max(range(start, end), key=area))
    return [*kept, count - 1]


def _order(curve: Curve) -> None:
    """Sorts by position; of equal positions (written again after an interruption) the last one counts."""
    last = dict(zip(curve.x, curve.y))
    curve.x = sorted(last)
    curve.y = [last[position] for position in curve.x]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _integer(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
