"""Several runs side by side: what differs in their recipes, and what the later ones gained over the first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from decoct.meters.interval import LEVEL, interval
from decoct.report import units
from decoct.report.chain import compressed
from decoct.report.records import Comparison, ModelRecord, Results
from decoct.report.runs import Run
from decoct.report.sentence import SAME_SIZE, SAME_SPEED, Finding, compare, shipped_of, subject_of

MOST, LETTERS = 60, 80
"""Most settings that are listed, and characters of a value."""


@dataclass(frozen=True)
class Difference:
    """A setting that differs, and its value in each run."""

    setting: str
    values: tuple[str, ...]


def differences(runs: Sequence[Run]) -> tuple[list[Difference], int]:
    """The settings of the recipes that differ, steps and models by name; and how many more there are than are listed.

    >>> from pathlib import Path
    >>> runs = [Run(Path("a"), "a", Results(recipe={"seed": n, "data": {"use": "digits"}}), "") for n in (0, 1)]
    >>> differences(runs)[0]
    [Difference(setting='seed', values=('0', '1'))]
    """
    flat = [dict(_flat("", run.results.recipe)) for run in runs]
    names = dict.fromkeys(name for each in flat for name in each)
    found = []
    for name in names:
        values = tuple(_value(each.get(name, units.ABSENT)) for each in flat)
        if len(set(values)) > 1:
            found.append(Difference(name, values))
    return found[:MOST], max(len(found) - MOST, 0)


def gains(runs: Sequence[Run]) -> list[Finding]:
    """What each later run gained over the first, by the model that each ends with."""
    first, *others = runs
    return [found for run in others for found in _gains(first, run)]


def _gains(first: Run, second: Run) -> Iterator[Finding]:
    theirs, ours = _model(first.results), _model(second.results)
    if theirs is None or ours is None:
        return
    before, after = f"{theirs.name} of {first.name}", f"{ours.name} of {second.name}"
    metric = second.results.metric
    mine, other = ours.quality.get(metric), theirs.quality.get(metric)
    problem = _unlike(first, second, ours, theirs)
    if problem or mine is None or other is None:
        why = problem or f"they do not both have a figure of {metric or 'quality'}"
        yield Finding(f"The quality of {after} and {before} is not compared: {why}.", "warning")
    else:
        yield _quality(second.results, after, before, ours, theirs)
    for told in (_time(after, before, ours, theirs), _bytes(after, before, ours, theirs)):
        if told:
            yield Finding(told, "note")


def _model(results: Results) -> ModelRecord | None:
    end = shipped_of(results)
    return end if end is not None and compressed(results, end) else subject_of(results)


def _unlike(first: Run, second: Run, ours: ModelRecord, theirs: ModelRecord) -> str:
    one, two = first.results, second.results
    if one.metric != two.metric:
        return f"one is measured by {one.metric}, the other by {two.metric}"
    if one.data.get("fingerprint") != two.data.get("fingerprint"):
        return "they saw different data"
    if not ours.graded_like(theirs):
        return "they were graded on different samples"
    return ""


def _quality(results: Results, after: str, before: str, ours: ModelRecord, theirs: ModelRecord) -> Finding:
    """By seeds that both have where there are two; else by the number of samples, where the metric is a mean of right
    answers; else without an interval."""
    metric = results.metric
    one, two = ({each.seed: each.quality.get(metric) for each in model.per_seed} for model in (ours, theirs))
    pairs = [(x, y) for seed, x in one.items() if x is not None and (y := two.get(seed)) is not None]
    if len(pairs) > 1:
        gaps = [x - y for x, y in pairs]
        low, high = interval(gaps)
        mean = sum(gaps) / len(gaps)
        found = Comparison(better=after, than=before, mean=mean, low=low, high=high, level=LEVEL, n=len(gaps))
        return compare(results, found)
    mean = ours.quality[metric] - theirs.quality[metric]
    if metric == "accuracy" and ours.n and ours.confusion is not None:
        half = _half(ours.quality[metric], theirs.quality[metric], ours.n)
        found = Comparison(better=after, than=before, mean=mean, low=mean - half, high=mean + half, level=LEVEL, n=1)
        return compare(results, found, over=f"{ours.n:,} samples, taken as drawn apart for each; one seed")
    return compare(results, Comparison(better=after, than=before, mean=mean, n=1))


def _half(one: float, two: float, count: int) -> float:
    """Half the interval of the difference of two shares of `count` samples, by the normal approximation."""
    return NormalDist().inv_cdf((1 + LEVEL) / 2) * math.sqrt((one * (1 - one) + two * (1 - two)) / count)


def _time(after: str, before: str, ours: ModelRecord, theirs: ModelRecord) -> str:
    if not ours.measured_like(theirs):
        return ""
    words = _ratio(theirs.p50, ours.p50, SAME_SPEED, ("as fast as", "{} times faster than", "{} times slower than"))
    return f"{after} answers {words} {before}, each measured in its own run." if words else ""


def _bytes(after: str, before: str, ours: ModelRecord, theirs: ModelRecord) -> str:
    told = ("as large as", "{} times smaller than", "{} times larger than")
    words = _ratio(theirs.file_bytes, ours.file_bytes, SAME_SIZE, told)
    return f"The file of {after} is {words} that of {before}." if words else ""


def _ratio(theirs: float | None, ours: float | None, same: float, told: tuple[str, str, str]) -> str:
    """What `theirs / ours` is in words: equal below `same`, less, more; empty where one is not known."""
    if not theirs or not ours:
        return ""
    ratio = theirs / ours
    if max(ratio, 1 / ratio) < same:
        return told[0]
    return told[1 if ratio > 1 else 2].format(units.times(max(ratio, 1 / ratio)))


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Settings by dotted name; entries of a list of named things by their names."""
    if isinstance(value, Mapping) and value:
        for key, each in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), each)
    elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        seen: dict[str, int] = {}
        for each in value:
            own = str(each.get("name") or each.get("use") or "")
            seen[own] = seen.get(own, 0) + 1
            label = own if seen[own] == 1 else f"{own} ({seen[own]})"
            yield from _flat(f"{name}.{label}", {key: part for key, part in each.items() if key != "name"})
    elif name:
        yield name, value


def _value(value: Any) -> str:
    found = value if isinstance(value, str) else str(value)
    return found if len(found) <= LETTERS else f"{found[: LETTERS - 1]}…"
