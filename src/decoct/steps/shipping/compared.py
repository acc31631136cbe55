"""Comparing two models over seeds: paired differences and the interval of their mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from decoct.meters.interval import LEVEL, interval


def compared(better: Mapping[str, Any], than: Mapping[str, Any], metric: tuple[str, str]) -> dict[str, Any]:
    """The record of one comparison: differences `better` - `than` of the main metric, seed by seed, and their mean.

    `gain` is the mean with its interval turned so that more is always better.
    """
    name, direction = metric
    ours, theirs = _by_seed(better, name), _by_seed(than, name)
    seeds = [seed for seed in ours if seed in theirs]
    differences = [ours[seed] - theirs[seed] for seed in seeds]
    mean = float(np.mean(differences)) if differences else None
    low, high = interval(differences)
    turned = (mean, low, high) if direction == "max" else (_negative(mean), _negative(high), _negative(low))
    notes = {0: "no seed in common", 1: "one seed"}
    return {
        "better": better["name"],
        "than": than["name"],
        "metric": name,
        "direction": direction,
        "seeds": seeds,
        "differences": differences,
        "mean": mean,
        "low": low,
        "high": high,
        "gain": dict(zip(("mean", "low", "high"), turned)),
        "level": LEVEL,
        "n": len(differences),
        "note": notes.get(len(differences), ""),
    }


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def _by_seed(record: Mapping[str, Any], metric: str) -> dict[int, float]:
    return {each["seed"]: each["quality"][metric] for each in record["per_seed"] if metric in each["quality"]}
