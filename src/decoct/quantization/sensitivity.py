"""Sensitivity: what each layer costs when it computes in integers, and the layers that stay in float for a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from decoct.errors import BudgetMissed
from decoct.quantization._ranges import opened
from decoct.quantization.base import Feeds, Judge

if TYPE_CHECKING:
    import onnx

BATCHES = 2
"""Calibration batches on which answers are compared."""


class Choosing(Protocol):
    """A graph of which any of the `able` layers can be in integers."""

    @property
    def able(self) -> Sequence[str]: ...

    def write(self, nodes: Sequence[str]) -> onnx.ModelProto: ...


@dataclass(frozen=True)
class Cost:
    """One layer's: `alone_db` the signal-to-noise ratio of the graph's answers when it alone is in integers, `rest_db`
    when all but it are (None: no noise); `alone_score`, `rest_score` the task's score in both cases."""

    node: str
    alone_db: float | None
    rest_db: float | None
    alone_score: float | None = None
    rest_score: float | None = None

    @property
    def order(self) -> float:
        """The lower the worse."""
        return np.inf if self.alone_db is None else self.alone_db


def sqnr_db(found: np.ndarray, expected: np.ndarray) -> float | None:
    """Signal to quantization noise, 10 log10(sum of squares / sum of squared differences); None where nothing differs.

    >>> round(sqnr_db(np.array([1.0, 2.1]), np.array([1.0, 2.0])), 3)
    26.99
    """
    expected = expected.astype(np.float64)
    noise = float(((found - expected) ** 2).sum())
    signal = float((expected**2).sum())
    return 10 * float(np.log10(signal / noise)) if noise > 0 and signal > 0 else None


def costs(plan: Choosing, feeds: Feeds, judge: Judge | None = None) -> list[Cost]:
    """The cost of each layer, worst first, on the first calibration batches; scores where there is a judge."""
    batches = list(islice(feeds(), BATCHES))

    def answers(proto: onnx.ModelProto) -> np.ndarray:
        session = opened(proto)
        return np.concatenate([next(iter(session(feed).values())).ravel() for feed in batches])

    expected = answers(plan.write(()))

    def judged(nodes: Sequence[str]) -> tuple[float | None, float | None]:
        proto = plan.write(nodes)
        return sqnr_db(answers(proto), expected), None if judge is None else judge(proto)

    found = []
    for node in plan.able:
        alone_db, alone_score = judged([node])
        rest_db, rest_score = judged([each for each in plan.able if each != node])
        found.append(Cost(node, alone_db, rest_db, alone_score, rest_score))
    return sorted(found, key=lambda each: each.order)


@dataclass(frozen=True)
class Mixture:
    """The layers that stay in float for a budget, worst first, and the scores: of the float graph, with all layers in
    integers, and with these in float; `floor` is the least score allowed."""

    kept: tuple[str, ...]
    floor: float
    float_score: float
    integer_score: float
    score: float

    def data(self) -> dict[str, Any]:
        """As it stands in exported.json, without the layers."""
        return {
            "floor": self.floor,
            "float_score": self.float_score,
            "integer_score": self.integer_score,
            "score": self.score,
        }


def floor_of(float_score: float, min_quality: float | None, max_drop: float | None) -> float:
    """The least score that the budgets allow; BudgetMissed where the float graph itself has less."""
    floor = max(
        -np.inf if min_quality is None else min_quality, -np.inf if max_drop is None else float_score - max_drop
    )
    if floor > float_score:
        raise BudgetMissed(
            f"min_quality is {min_quality:g}, the float graph scores {float_score:g} on validation data: "
            f"{floor - float_score:.3g} short before anything is quantized; lower it or train a better model"
        )
    return float(floor)


def mixture(
    plan: Choosing, order: Callable[[], Sequence[str]], judge: Judge, floor: float, float_score: float
) -> Mixture:
    """The fewest of the worst layers, by bisection over their number, that must stay in float for a score of `floor`.

    `order`: the layers, worst first, asked for only where all in integers misses the floor. The score of the graph that
    is returned is always measured.
    """
    everything = len(plan.able)
    scores = {everything: float_score}
    ranked: list[str] = []

    def score(count: int) -> float:
        if count not in scores:
            kept = set(ranked[:count])
            scores[count] = judge(plan.write([each for each in plan.able if each not in kept]))
        return scores[count]

    if score(0) >= floor:
        return Mixture((), floor, float_score, score(0), score(0))
    ranked.extend(order())
    missed, held = 0, everything
    while held - missed > 1:
        middle = (missed + held) // 2
        if score(middle) >= floor:
            held = middle
        else:
            missed = middle
    return Mixture(tuple(ranked[:held]), floor, float_score, scores[0], score(held))
