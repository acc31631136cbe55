"""Moving code changes no number: what tiny recipes log is what they logged."""

from pathlib import Path

import pytest
from golden_losses import alone, in_two
from golden_numbers import TOLERANCE, bit_for_bit, differences, recorded
from golden_recipes import RECIPES, TWO_PROCESSES, WAYS


@pytest.mark.parametrize("name", RECIPES)
def test_losses_and_scores_are_those_recorded(name: str, tmp_path: Path) -> None:
    assert differences(alone(name, tmp_path), recorded(name), bit_for_bit(name)) == []


def test_so_are_those_of_two_processes(tmp_path: Path) -> None:
    name = "two_processes"
    assert differences(in_two(TWO_PROCESSES, tmp_path), recorded(name), bit_for_bit(name)) == []


def test_what_was_recorded_is_worth_comparing() -> None:
    """Every way of learning is there, every term of every step has numbers, and they change from step to step."""
    ways = set()
    for name in RECIPES:
        for step, found in recorded(name).items():
            trained = [each for each in found["log"] if each["kind"] == "train"]
            assert len(trained) >= 6 or step == "trees"
            for term in trained[0]["weights"] if trained else ():
                values = {each["terms"][term] for each in trained if term in each["terms"]}
                assert len(values) > 1 or "." in term, (name, step, term)
            ways |= {way for way in WAYS if way and step.endswith(way)}
    assert ways == set(WAYS) - {""}


@pytest.mark.parametrize("kind", TOLERANCE)
def test_a_number_that_differs_is_found(kind: str) -> None:
    allowed = sum(TOLERANCE[kind])
    step = "student" if kind == "float32" else f"student_{kind}"

    def of(value: float) -> dict:
        return {step: {"scores": {"accuracy": 0.5}, "log": [{"kind": "train", "terms": {"kd": value}}]}}

    assert differences(of(1.0), of(1.0), True) == []
    assert differences(of(1.0 + allowed / 2), of(1.0), False) == []
    assert differences(of(1.0 + 2 * allowed), of(1.0), False) == [
        f"/{step}/log/0/terms/kd: {1.0 + 2 * allowed!r}, recorded 1.0"
    ]
    assert len(differences(of(1.0 + 1e-15), of(1.0), True)) == 1
    assert differences({}, of(1.0), False) == [f"/{step}: only recorded"]
    assert differences(of(1.0), {}, False) == [f"/{step}: only found"]
    assert differences({"scores": {"mse": 1.0, "old": 2.0}}, {"scores": {"old": 2.0}}, True) == []
    assert differences({"scores": {}}, {"scores": {"old": 2.0}}, True) == ["/scores/old: only recorded"]
    assert differences({"scores": {"new": 1.0}}, {"scores": {}}, True) == ["/scores/new: only found"]
    assert len(differences({step: {"log": []}}, {step: {"log": [1]}}, False)) == 1
