"""What a recipe costs as its steps become many, in calls of functions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from decoct.recipe.graph import graph
from decoct.recipe.recipe import Recipe
from tiny import PAIR, recipe

LEARN = {"use": "train", "budget": {"steps": 1}}


def chained(count: int, *, line: bool) -> Recipe:
    """A recipe of so many steps, each after the one before it, or each on its own."""
    inputs = [{"model": f"s{number - 1}" if line and number else "small"} for number in range(count)]
    return recipe(PAIR, steps=[{**LEARN, "name": f"s{number}", "inputs": each} for number, each in enumerate(inputs)])


def calls(work: Callable[[], Any]) -> int:
    """How many functions the work calls."""
    found = [0]

    def heard(frame: Any, event: str, given: Any) -> None:
        found[0] += event == "call"

    sys.setprofile(heard)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found[0]


@pytest.mark.parametrize("line", [True, False])
@pytest.mark.parametrize("work", [lambda made: Recipe.parse(made.plain()), lambda made: graph(made, [0, 1])])
def test_four_times_the_steps_are_four_times_the_work(work: Callable[[Recipe], Any], line: bool) -> None:
    few, many = chained(50, line=line), chained(200, line=line)
    work(few)
    assert calls(lambda: work(many)) < 4.4 * calls(lambda: work(few))


def test_the_inputs_in_order_are_those_of_each_step() -> None:
    made = recipe()
    assert made.inputs_in_order() == [made.inputs_of(step) for step in made.steps]
