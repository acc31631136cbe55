"""Budgets: what a file may cost and must be worth, measured on the file itself; who lost it where it is missed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from decoct.artifact import MANIFEST, Artifact
from decoct.errors import BudgetMissed, IntegrityError, RecipeError
from decoct.meters.latency import measure
from decoct.outputs import Batch
from decoct.spec import Spec
from decoct.steps.base import Context, Inputs
from decoct.steps.learning.batches import few, has_split, scores
from decoct.steps.shipping.candidates import session_predictor
from decoct.targets.base import Target

REPEATS, WARMUP, SECONDS = 200, 20, 10.0


class Budgets(Spec):
    """What a file must keep.

    `min_quality`: the least of the task's main metric on validation data (for an error the most), by running the file;
    `max_latency_ms`: the median of one call, one sample, one thread; `max_size_bytes`: all files that ship together.
    """

    min_quality: float | None = None
    max_latency_ms: float | None = Field(default=None, gt=0)
    max_size_bytes: int | None = Field(default=None, ge=1)

    def budgets(self) -> dict[str, float]:
        """Those that are set, by name."""
        found = {name: getattr(self, name) for name in ("min_quality", "max_latency_ms", "max_size_bytes")}
        return {name: float(value) for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Measured:
    """A file against its budgets: what was asked and found, by the name of the budget, and what was missed, in words.

    `metric` is the task's, `errors` whether less of it is better.
    """

    asked: dict[str, float]
    found: dict[str, float]
    metric: str
    errors: bool

    def data(self) -> dict[str, Any]:
        """As it stands in exported.json."""
        return {name: {"budget": self.asked[name], "measured": value} for name, value in self.found.items()}

    def over(self, name: str) -> float:
        """By how much a budget is missed, in its own unit; 0 or less where it is kept."""
        gap = self.found[name] - self.asked[name]
        return -gap if name == "min_quality" and not self.errors else gap

    @property
    def missed(self) -> list[str]:
        """The names of the budgets that are missed; a number that is not finite misses."""
        return [name for name in self.found if not self.over(name) <= 0]

    def words(self) -> list[str]:
        """One sentence for each budget that is missed."""
        return [f"{name}: {self._miss(name)}" for name in self.missed]

    def _miss(self, name: str) -> str:
        found, asked, gap = self.found[name], self.asked[name], self.over(name)
        if name == "min_quality":
            side = "above" if self.errors else "below"
            return f"validation {self.metric} is {found:.4f}, {gap:.4f} {side} the {asked:.4f} asked for"
        if name == "max_latency_ms":
            return f"one call takes {digits(found)} ms, {digits(gap)} ms ({_part(gap, asked)}) above {digits(asked)} ms"
        return f"the file takes {found:.0f} bytes, {gap:.0f} ({_part(gap, asked)}) above {asked:.0f}"


def digits(value: float) -> str:
    """A number with three significant digits, more where it is large, and no exponent.

    >>> [digits(each) for each in (0.0001, 0.01909, 1.5, 12345.6)]
    ['0.0001', '0.0191', '1.5', '12346']
    """
    if not isfinite(value) or abs(value) >= 1000:
        return f"{value:.0f}"
    return np.format_float_positional(value, precision=3, unique=False, fractional=False, trim="-")


def _part(gap: float, asked: float) -> str:
    """How much a gap is of what was asked: per cent, or so many times where that says more."""
    return f"{gap / asked:.3g} times what was asked" if gap > 10 * asked else f"{digits(100 * gap / asked)}%"


def measured(budgets: Budgets, target: Target, path: Path, context: Context, side: str) -> Measured:
    """Runs a written file for the budgets that are set."""
    asked, found = budgets.budgets(), {}
    name, better = context.task.metric
    if asked:
        session = target.load(path, threads=1)
        if "min_quality" in asked:
            if not has_split(context, "validation"):
                raise RecipeError("min_quality needs a validation split, and the data have none; leave it out")
            predict = session_predictor(session, context.task.reading(side))
            found["min_quality"] = scores(predict, context, "validation")[name]
        if "max_latency_ms" in asked:
            feed = context.task.reading(side).feed(Batch(few(context, 1, _any_split(context)).inputs))
            feed = {key: value[:1] for key, value in feed.items()}
            timed = measure({"file": lambda: session(feed)}, repeats=REPEATS, warmup=WARMUP, seconds=SECONDS)
            found["max_latency_ms"] = timed["file"].p50_ms
        if "max_size_bytes" in asked:
            found["max_size_bytes"] = float(sum(each.stat().st_size for each in target.files(path)))
    return Measured(asked, found, name, better == "min")


def keep(budgets: Budgets, target: Target, path: Path, context: Context, inputs: Inputs, side: str) -> dict[str, Any]:
    """The record of a file that keeps its budgets; BudgetMissed says by how much it does not, and what lost it."""
    seen = measured(budgets, target, path, context, side)
    if seen.missed:
        words = seen.words()
        if "min_quality" in seen.missed:
            words.append(blame(seen, way(inputs, context.task.metric[0]), context.name))
        raise BudgetMissed(f"{context.name}: " + "; ".join(word for word in words if word))
    return seen.data()


def blame(seen: Measured, scored: Sequence[tuple[str, float]], name: str) -> str:
    """Which step lost most of the quality on the way to the file: the largest drop from one step to the next."""
    if not scored:
        return ""
    sign = -1.0 if seen.errors else 1.0
    asked = seen.asked["min_quality"]
    first, begin = scored[0]
    if sign * begin < sign * asked:
        return f"step {first!r}, the first of its line, has {begin:.4f} already; train it longer or choose another"
    ways = [*scored, (name, seen.found["min_quality"])]
    drops = [(sign * (a - b), step, a, b) for (_, a), (step, b) in pairwise(ways)]
    _, step, before, after = max(drops, key=lambda each: each[0])
    return f"step {step!r} lost most, {before:.4f} to {after:.4f}"


def way(inputs: Inputs, metric: str) -> list[tuple[str, float]]:
    """The steps that a model came through, oldest first, with what each scored on validation data."""
    found: list[tuple[str, float]] = []
    artifact = inputs.get("model")
    seen: set[Path] = set()
    while isinstance(artifact, Artifact) and artifact.folder not in seen:
        seen.add(artifact.folder)
        if metric in artifact.scores:
            found.append((artifact.name, float(artifact.scores[metric])))
        artifact = _parent(artifact)
    return found[::-1]


def _parent(artifact: Artifact) -> Artifact | None:
    """What an artifact was made from, found beside it by its hash."""
    made_from = artifact.lineage.get("model") or []
    wanted = {each.get("hash") for each in made_from if "hash" in each}
    names = {each["step"] for each in made_from if "step" in each}
    for path in sorted(artifact.folder.parent.glob(f"*/{MANIFEST}")) if wanted else []:
        try:
            beside = Artifact.load(path.parent, verify=False)
        except IntegrityError:
            continue
        if beside.name in names and beside.hash in wanted:
            return beside
    return None


def _any_split(context: Context) -> str:
    return next((name for name in ("validation", "test") if has_split(context, name)), "train")
