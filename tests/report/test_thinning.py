"""Long logs thinned while they are read."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from decoct.report.curves import read_log
from decoct.report.thinning import PARTS, thinned_lines


def line(step: str, number: int, loss: float | None, kind: str = "train") -> str:
    record = {"step": step, "seed": 0, "step_number": number, "kind": kind, "epoch": 0, "loss": loss, "lr": 0.1}
    return json.dumps(record) + "\n"


def losses(count: int) -> list[float]:
    drawn = random.Random(3)
    return [drawn.lognormvariate(0, 1) * 10 ** drawn.randrange(-9, 3) for _ in range(count)]


def test_up_to_a_length_every_line_is_kept() -> None:
    lines = [line(step, number, loss) for step in "ab" for number, loss in enumerate(losses(PARTS))]
    assert list(thinned_lines(lines)) == lines


@pytest.mark.parametrize("count", [PARTS + 1, 5 * PARTS + 17])
def test_of_a_long_training_the_extremes_and_the_ends_are_kept_in_order(count: int) -> None:
    drawn = losses(count)
    lines = [line("a", number, loss) for number, loss in enumerate(drawn)]
    found = list(thinned_lines(lines))
    numbers = [json.loads(each)["step_number"] for each in found]
    assert numbers == sorted(set(numbers))
    assert [lines[number] for number in numbers] == found
    assert {0, count - 1, drawn.index(min(drawn)), drawn.index(max(drawn))} <= set(numbers)
    assert len(found) <= min(count, 3 * PARTS + 1)
    size = 2 ** math.ceil(math.log2(count / PARTS))
    for begin in range(0, count, size):
        part = range(begin, min(begin + size, count))
        assert {begin, min(part, key=drawn.__getitem__), max(part, key=drawn.__getitem__)} <= set(numbers)


def test_what_tells_something_else_is_kept_where_it_stood() -> None:
    lines = [line("a", number, loss) for number, loss in enumerate(losses(3 * PARTS))]
    others = [line("a", 7, 0.5, kind="validation"), line("a", 8, None), "torn {\n", "\n", '{"loss": 1e-}\n']
    for place, other in zip((0, 100, 2 * PARTS, 2 * PARTS + 50, 3 * PARTS), others):
        lines.insert(place, other)
    found = list(thinned_lines(lines))
    assert [each for each in found if each in others] == others
    assert [lines.index(each) for each in found] == sorted(lines.index(each) for each in found)


def test_trainings_are_thinned_apart() -> None:
    short = [line("b", number, 1.0 + number) for number in range(50)]
    long = [line("a", number, loss) for number, loss in enumerate(losses(4 * PARTS))]
    found = list(thinned_lines([*long, *short]))
    assert found[-50:] == short
    assert len(found) < 3 * PARTS + 52


def test_the_curves_of_a_long_log_keep_their_ends_and_extremes(tmp_path: Path) -> None:
    drawn = losses(3 * PARTS)
    lines = [line("a", number, loss) for number, loss in enumerate(drawn, 1)]
    (tmp_path / "log.jsonl").write_text("".join([*lines, line("a", 1, 0.0, kind="validation"), "torn\n"]))
    log = read_log(tmp_path)
    [total] = log.losses
    assert (total.x[0], total.x[-1]) == (1, 3 * PARTS)
    assert (min(total.y), max(total.y)) == (min(drawn), max(drawn))
    assert len(total.x) < 3 * PARTS
    assert log.lost == 1
