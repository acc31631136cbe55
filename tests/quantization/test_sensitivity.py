"""Which layers stay in float for a budget: floors that are met exactly, and the fewest that are needed."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoct.errors import BudgetMissed
from decoct.quantization.sensitivity import floor_of, mixture, sqnr_db

LAYERS = tuple("abcdefg")


class Table:
    """A plan whose graphs are the layers in integers."""

    able = LAYERS

    def write(self, nodes: Sequence[str]) -> tuple[str, ...]:
        return tuple(nodes)


@given(st.lists(st.integers(0, 9), min_size=8, max_size=8), st.integers(0, 9))
def test_the_fewest_of_the_worst_layers_stay_and_a_score_at_the_floor_is_enough(drops: list[int], floor: int) -> None:
    """Scores rise with the layers that stay, worst first; the whole float graph keeps the floor."""
    scores = np.sort(np.array(drops, dtype=float))
    floor = min(float(floor), scores[-1])
    judged: list[int] = []

    def judge(nodes: Sequence[str]) -> float:
        judged.append(7 - len(nodes))
        return scores[judged[-1]]

    found = mixture(Table(), lambda: LAYERS, judge, floor, scores[-1])
    assert len(judged) == len(set(judged)) <= 4, "all in integers, then halves of seven"
    wanted = int(np.flatnonzero(scores >= floor)[0])
    assert found.kept == LAYERS[:wanted]
    assert (found.score, found.integer_score, found.float_score) == (scores[wanted], scores[0], scores[-1])


@pytest.mark.parametrize(("quality", "drop", "floor"), [(0.5, None, 0.5), (None, 0.0, 0.5), (0.25, 0.125, 0.375)])
def test_a_floor_may_be_as_high_as_the_float_score(quality: float | None, drop: float | None, floor: float) -> None:
    assert floor_of(0.5, quality, drop) == floor
    with pytest.raises(BudgetMissed, match="short before anything is quantized"):
        floor_of(0.5, float(np.nextafter(0.5, 1)), drop)


def test_noise_of_nothing_is_none() -> None:
    ones = np.ones(3, np.float32)
    assert sqnr_db(ones, ones) is None
    assert sqnr_db(ones, np.zeros(3)) is None
    assert sqnr_db(2 * ones, ones) == 0.0
