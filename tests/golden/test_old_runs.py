"""A folder that earlier code wrote: nothing is made again, everything opens, and all say what they said."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from golden_inside import call, on_the_stand_in
from golden_losses import logs, room
from golden_numbers import bit_for_bit, differences, recorded
from golden_old_runs import OLD_RUNS, archive, continued, old_answers, unpack

import decoct as dc
from decoct.steps.train_estimator import TrainEstimator
from tiny import Watch, tree

LARGEST = 250_000
"""Bytes of all packed folders together."""


@pytest.fixture(params=OLD_RUNS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def old(name: str, tmp_path: Path) -> Iterator[Path]:
    """The folder of an old run, on the machine that wrote it, beside its data."""
    with room(tmp_path), on_the_stand_in():
        yield unpack(name, tmp_path / "run")


def ran(folder: Path, plain: dict[str, Any]) -> Watch:
    watch = Watch()
    dc.Recipe.parse(plain).run(folder, watch=watch)
    return watch


def test_every_step_is_unchanged_and_a_further_one_reuses_the_store(
    name: str, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainEstimator, "version", 1)  # that of the code that wrote it
    before = tree(old)
    plain = OLD_RUNS[name]()
    assert dc.Recipe.load(old / "recipe.yaml") == dc.Recipe.parse(plain)
    watch = ran(old, continued(plain))
    assert watch.steps("started") == ["further"]
    assert watch.steps("skipped") == [step["name"] if "name" in step else step["use"] for step in plain["steps"]]
    assert {watch.why(step) for step in watch.steps("skipped")} == {"unchanged"}
    after = tree(old)
    assert {path: after.get(path) for path in before if path[:2].isdigit()} == {
        path: each for path, each in before.items() if path[:2].isdigit()
    }
    kept = recorded(f"old_{name}")["further"]
    assert differences(logs(old)["further"], kept, bit_for_bit(f"old_{name}")) == []


@pytest.mark.filterwarnings("ignore:teacher is near one-hot")
def test_an_estimator_is_made_anew_and_what_follows_from_it(tmp_path: Path) -> None:
    """It says now on which rows it was fitted, so that it is asked of these out-of-fold."""
    with room(tmp_path), on_the_stand_in():
        old = unpack("classes", tmp_path / "run")
        watch = ran(old, OLD_RUNS["classes"]())
    assert {"teacher", "labels", "student"} <= set(watch.steps("started"))
    assert next(old.glob("*-teacher/trained_on.npy")).is_file()


def test_models_files_and_stores_say_what_they_said(name: str, old: Path) -> None:
    kept = {step: each for step, each in recorded(f"old_{name}").items() if step != "further"}
    assert differences(old_answers(old), kept, bit_for_bit(f"old_{name}")) == []


def test_it_is_whole(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("verify", old) == 0
    outputs = capsys.readouterr().out
    assert outputs.count("says what its model says") + outputs.count("is the estimator's own file") >= 2
    assert "not compared" not in outputs


def test_on_another_machine_the_benchmark_alone_is_made_anew(tmp_path: Path) -> None:
    with room(tmp_path):
        watch = ran(unpack("numbers", tmp_path / "run"), OLD_RUNS["numbers"]())
    assert watch.steps("started") == ["benchmark"]


def test_the_packed_folders_are_small() -> None:
    assert sum(archive(name).stat().st_size for name in OLD_RUNS) < LARGEST
