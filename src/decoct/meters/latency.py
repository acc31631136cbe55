"""Latency: candidates measured in turn, so that a neighbour's load falls on all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

ROUNDS = 10
"""Rounds that the repeats are spread over."""
SPREAD_LIMIT = 0.25
"""Largest (p75 - p25) / median of the rounds' medians that counts as quiet."""
TAIL_LIMIT = 5.0
"""Largest p99 / p50 that counts as quiet."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call over `repeats` calls; `noisy` with its `reason`; `load` average when it was taken."""

    p50_ms: float
    p99_ms: float
    min_ms: float
    mean_ms: float
    repeats: int
    noisy: bool
    reason: str = ""
    load: float | None = None


def measure(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = 200,
    warmup: int = 20,
    seconds: float | None = None,
    rounds: int = ROUNDS,
) -> dict[str, Latency]:
    """The latency of each candidate, interleaved.

    Every candidate is called `warmup` times untimed. Then come `rounds` rounds; in each, every candidate is called
    `repeats / rounds` times in a row (at least once), and the order turns by one from round to round. With `seconds`,
    no round starts after that time, but one is always run.

    >>> measure({"a": lambda: sum(range(100))}, repeats=20)["a"].repeats
    20
    """
    samples = timings(candidates, repeats=repeats, warmup=warmup, seconds=seconds, rounds=rounds)
    load = psutil.getloadavg()[0]
    return {name: summary(each, load=load) for name, each in samples.items()}


def timings(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = 200,
    warmup: int = 20,
    seconds: float | None = None,
    rounds: int = ROUNDS,
) -> dict[str, list[np.ndarray]]:
    """What `measure` sums up: the nanoseconds of each call of each candidate, by round.

    >>> [len(each) for each in timings({"a": lambda: None}, repeats=4, rounds=2)["a"]]
    [2, 2]
    """
    if repeats < 1 or rounds < 1 or warmup < 0:
        raise ValueError(f"repeats={repeats}, rounds={rounds}, warmup={warmup}; repeats and rounds are at least 1")
    names = list(candidates)
    for name in names:
        for _ in range(warmup):
            candidates[name]()
    samples: dict[str, list[np.ndarray]] = {name: [] for name in names}
    begin = time.perf_counter()
    for index, calls in enumerate(_split(repeats, min(rounds, repeats))):
        if index and seconds is not None and time.perf_counter() - begin > seconds:
            break
        for name in names[index % len(names) :] + names[: index % len(names)]:
            samples[name].append(_timed(candidates[name], calls))
    return samples


def summary(rounds: list[np.ndarray], *, load: float | None = None) -> Latency:
    """Quantiles of all calls (nanoseconds, by round), and whether rounds disagree or the tail is long.

    >>> summary([np.array([2e6, 2e6]), np.array([2e6, 4e6])]).p50_ms
    2.0
    """
    every = np.concatenate(rounds) / 1e6
    p50, p99 = (float(np.quantile(every, q)) for q in (0.5, 0.99))
    medians = np.array([np.median(each) for each in rounds]) / 1e6
    low, high = np.quantile(medians, [0.25, 0.75])
    spread = float((high - low) / p50) if p50 else 0.0
    reasons = []
    if spread > SPREAD_LIMIT:
        reasons.append(f"the rounds' medians differ by {spread:.0%}")
    if p99 > TAIL_LIMIT * p50:
        reasons.append(f"p99 is {p99 / p50:.1f} times p50" if p50 else "p50 is 0")
    return Latency(
        p50_ms=p50,
        p99_ms=p99,
        min_ms=float(every.min()),
        mean_ms=float(every.mean()),
        repeats=len(every),
        noisy=bool(reasons),
        reason="; ".join(reasons),
        load=load,
    )


def _split(total: int, parts: int) -> list[int]:
    return [total // parts + (i < total % parts) for i in range(parts)]


def _timed(call: Callable[[], Any], calls: int) -> np.ndarray:
    taken = np.empty(calls)
    for i in range(calls):
        begin = time.perf_counter_ns()
        call()
        taken[i] = time.perf_counter_ns() - begin
    return taken
