"""Runs compared: the settings that differ, and intervals that are those of the textbooks."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from decoct.report.comparing import MOST, differences, gains
from decoct.report.records import Results
from decoct.report.runs import Run


def run(name, recipe=None, models=(), **more):
    task = {"use": "image_classification", "metric": "accuracy", "direction": "max"}
    data = {"fingerprint": "f"}
    found = {"recipe": recipe or {}, "models": list(models), "task": task, "data": data} | more
    return Run(Path(name), name, Results.model_validate(found), "")


def model(values, n=1000, name="student", **more):
    seeded = [{"seed": seed, "quality": {"accuracy": value}} for seed, value in enumerate(values)]
    square = {"labels": ["a", "b"], "matrix": [[1, 0], [0, 1]]}
    found = {"name": name, "quality": {"accuracy": float(np.mean(values))}, "per_seed": seeded, "n": n, "split": "test"}
    return found | {"confusion": square} | more


def test_settings_that_differ_are_named_by_steps_and_in_order() -> None:
    one = {"seed": 0, "steps": [{"use": "train", "name": "big", "lr": 0.1}, {"use": "prune"}], "data": {"use": "a"}}
    two = {"seed": 0, "steps": [{"use": "train", "name": "big", "lr": 0.2}], "data": {"use": "a", "limit": 5}}
    found, more = differences([run("x", one), run("y", two)])
    assert [(each.setting, each.values) for each in found] == [
        ("steps.big.lr", ("0.1", "0.2")),
        ("steps.prune.use", ("prune", "–")),
        ("data.limit", ("–", "5")),
    ]
    assert more == 0
    many = {f"k{i}": i for i in range(MOST + 3)}
    found, more = differences([run("x", {}), run("y", many)])
    assert (len(found), more) == (MOST, 3)


def test_seeds_of_both_give_students_interval() -> None:
    ours, theirs = [0.95, 0.94, 0.97, 0.96], [0.91, 0.92, 0.90, 0.93]
    (found,) = gains([run("a", models=[model(theirs)]), run("b", models=[model(ours)])])
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    told = f"{100 * expected.low:.1f} to {100 * expected.high:.1f} over 4 seeds"
    assert told in found.text
    assert found.text.startswith("student of b is 4.0 points better than student of a")
    assert found.tone == "better"


def test_one_seed_is_judged_by_its_samples() -> None:
    (found,) = gains([run("a", models=[model([0.90])]), run("b", models=[model([0.91])])])
    half = stats.norm.ppf(0.975) * np.sqrt((0.9 * 0.1 + 0.91 * 0.09) / 1000)
    assert f"−{100 * (half - 0.01):.1f} to {100 * (0.01 + half):.1f}" in found.text
    assert found.tone == "open"
    (far,) = gains([run("a", models=[model([0.70])]), run("b", models=[model([0.91])])])
    assert far.tone == "better"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"data": {"fingerprint": "other"}}, "they saw different data"),
        ({"task": {"metric": "f1"}}, "one is measured by accuracy, the other by f1"),
    ],
)
def test_what_is_unlike_is_not_compared(more, why) -> None:
    (found,) = gains([run("a", models=[model([0.9])]), run("b", models=[model([0.9])], **more)])
    assert why in found.text
    assert found.tone == "warning"


def test_other_samples_and_missing_figures_are_said() -> None:
    (found,) = gains([run("a", models=[model([0.9], n=10)]), run("b", models=[model([0.9])])])
    assert "graded on different samples" in found.text
    assert gains([run("a"), run("b", models=[model([0.9])])]) == []


def test_files_and_times_are_told_where_they_were_measured_alike() -> None:
    timed = {"latency": {"runtime": "onnxruntime", "threads": 1, "batch": 1, "p50_ms": 1.0}}
    slow = {"latency": {**timed["latency"], "p50_ms": 3.0}}
    first = run("a", models=[model([0.9], file_bytes=1000, **slow)])
    second = run("b", models=[model([0.9], file_bytes=500, **timed)])
    texts = [each.text for each in gains([first, second])]
    assert "student of b answers 3.0 times faster than student of a, each measured in its own run." in texts
    assert "The file of student of b is 2.0 times smaller than that of student of a." in texts
