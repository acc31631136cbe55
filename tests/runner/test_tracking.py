"""Trackers and callbacks: what they write is read back by the trackers' own readers; they change no bit of a run."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import decoct as dc
from decoct.errors import RecipeError, ResourceError
from decoct.runner.execution import Run
from decoct.runner.tracking import TRACKERS, Tracker, Tracking
from tiny import SHIPPED, Watch, recipe, records

STEPS = ("teacher", "student_alone", "student")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return recipe(SHIPPED).run(tmp_path_factory.mktemp("plain") / "run")


def weights(run: Run, step: str) -> dict[str, torch.Tensor]:
    return load_file(run.artifact(step).file("model.safetensors"))


def expected(run: Run) -> dict[str, dict[int, float]]:
    """By name and step the numbers of the run's own log: the oracle of every tracker."""
    found: dict[str, dict[int, float]] = {}
    for each in records(run.folder / "log.jsonl"):
        at, step = each["step"], each["step_number"]
        if each["kind"] == "validation":
            for name, value in each["scores"].items():
                found.setdefault(f"{at}/validation/{name}", {})[step] = value
        elif each["kind"] == "train":
            for name in ("loss", "lr"):
                found.setdefault(f"{at}/{name}", {})[step] = each[name]
            for name, value in each["terms"].items():
                found.setdefault(f"{at}/terms/{name}", {})[step] = value
    return found


def same_weights(one: Run, other: Run) -> bool:
    return all(
        weights(one, step).keys() == weights(other, step).keys()
        and all(torch.equal(value, weights(other, step)[name]) for name, value in weights(one, step).items())
        for step in STEPS
    )


def test_tensorboard_holds_the_log_and_the_measures(plain: Run, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = recipe(SHIPPED).run(tmp_path / "run", track=("tensorboard",))
    read = accumulator.EventAccumulator(str(run.folder / "tracking/tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    tags = set(read.Tags()["scalars"])
    for name, values in expected(run).items():
        assert {each.step: each.value for each in read.Scalars(name)} == pytest.approx(values, rel=1e-6), name
    for step in STEPS:
        size = run.artifact(step).file("model.safetensors").stat().st_size
        assert [each.value for each in read.Scalars(f"{step}/file_bytes")] == [size]
        accuracy = run.artifact(step).scores["accuracy"]
        assert read.Scalars(f"{step}/final/accuracy")[0].value == pytest.approx(accuracy)
    student = next(each for each in run.results["models"] if each["name"] == "student")
    for name, value in (("accuracy", student["quality"]["accuracy"]), ("latency_p50_ms", student["latency"]["p50_ms"])):
        assert read.Scalars(f"models/student/{name}")[0].value == pytest.approx(value, rel=1e-6)
    assert "teacher/loss" in tags
    assert same_weights(run, plain)


def test_mlflow_holds_the_log(plain: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = recipe(SHIPPED).run(tmp_path / "run", track=("mlflow",))
    client = mlflow.MlflowClient(tracking_uri=(run.folder / "tracking/mlflow").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("decoct").experiment_id])
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert found.data.params["steps.2.use"] == "distill"
    for name, values in expected(run).items():
        history = client.get_metric_history(found.info.run_id, name)
        assert {each.step: each.value for each in history} == pytest.approx(values), name
    assert same_weights(run, plain)


def test_wandb_writes_here_and_sends_nothing(plain: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = recipe(SHIPPED).run(tmp_path / "run", track=("wandb",))
    (file,) = (run.folder / "tracking/wandb/wandb").glob("offline-run-*/*.wandb")
    content = file.read_bytes()
    for name in (*expected(run), "models/student/accuracy"):
        assert name.encode() in content, name
    assert same_weights(run, plain)


def test_trackio_writes_its_database_here(plain: Run, tmp_path: Path) -> None:
    """In a process of its own: Trackio reads its folder when it is imported."""
    pytest.importorskip("trackio")
    script = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from tiny import SHIPPED, recipe\n"
        f"recipe(SHIPPED).run({str(tmp_path / 'run')!r}, track=('trackio',))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    import sqlite3

    with sqlite3.connect(tmp_path / "run/tracking/trackio/decoct.db") as database:
        rows = [(step, json.loads(values)) for step, values in database.execute("SELECT step, metrics FROM metrics")]
    losses = {step: values["student/loss"] for step, values in rows if "student/loss" in values}
    own = {each["step_number"]: each["loss"] for each in records(tmp_path / "run/log.jsonl")
           if each["kind"] == "train" and each["step"] == "student"}  # fmt: skip
    assert losses == pytest.approx(own)


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_names_its_extra(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, real = TRACKERS[name].package, builtins.__import__
    for each in [each for each in sys.modules if each.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, each)
    monkeypatch.setitem(sys.modules, package, None)
    assert real is builtins.__import__
    with pytest.raises(ResourceError, match=rf"{package} cannot be imported.*pip install 'decoct\[{name}\]'"):
        recipe(SHIPPED).run(tmp_path / "run", track=(name,))
    assert not list(tmp_path.glob("run/*-teacher"))


def test_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="track is 'tensorbord'; did you mean tensorboard"):
        recipe(SHIPPED).run(tmp_path / "run", track=("tensorbord",))


class Broken(Tracker):
    """Fails at its n-th call, and would at each after it."""

    name, package = "broken", "json"
    calls = 0

    def numbers(self, step, at, values):
        type(self).calls += 1
        if type(self).calls >= 2:
            raise OSError("the disk of the tracker is full")

    def summary(self, values):
        raise OSError("no")

    def close(self, *, failed):
        raise OSError("never")


def test_a_tracker_that_fails_is_said_once_and_ends_no_run(
    plain: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRACKERS, "broken", Broken)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = recipe(SHIPPED).run(tmp_path / "run", track=("broken",))
    told = [str(each.message) for each in caught if "broken" in str(each.message)]
    assert told == [
        "--track broken failed and is left alone from here on (OSError: the disk of the tracker is full); "
        "the run goes on"
    ]
    assert Broken.calls == 2
    assert same_weights(run, plain)


def test_a_tracker_that_cannot_begin_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(Broken):
        name = "late"

        def __init__(self, folder, run, settings):
            raise PermissionError("not here")

    monkeypatch.setitem(TRACKERS, "late", Late)
    with pytest.warns(UserWarning, match="--track late could not begin"):
        run = recipe(SHIPPED).run(tmp_path / "run", track=("late",))
    assert run.results["models"]


def test_numbers_that_are_not_finite_are_left_out() -> None:
    class Keeps(Broken):
        def numbers(self, step, at, values):
            self.kept = (step, at, values)

    tracking = Tracking(Keeps(Path(), "", {}))
    record = {"kind": "train", "step": 3, "loss": None, "terms": {"kd": float("inf"), "task": 1.0}, "lr": 0.1}
    tracking({"event": "record", "step": "student", "seed": 2, "inside": "x", "record": record})
    assert tracking.tracker.kept == ("student.seed2/x", 3, {"lr": 0.1, "terms/task": 1.0})


# Callbacks.


class Keeps:
    """Keeps what it is told, and draws random numbers."""

    def __init__(self) -> None:
        self.steps, self.validations = [], []

    def on_step(self, step, losses):
        self.steps.append((step, losses))
        torch.rand(5), np.random.rand(5)

    def on_validation(self, step, scores):
        self.validations.append((step, scores))


def test_callbacks_see_the_log_and_change_no_bit(plain: Run, tmp_path: Path) -> None:
    seen = Keeps()
    run = recipe(SHIPPED).run(tmp_path / "run", callbacks=[seen])
    log = list(records(run.folder / "log.jsonl"))
    trained = [
        (each["step_number"], {"loss": each["loss"], **each["terms"]}) for each in log if each["kind"] == "train"
    ]
    assert seen.steps == trained
    assert seen.validations == [(each["step_number"], each["scores"]) for each in log if each["kind"] == "validation"]
    assert same_weights(run, plain)


class Ends:
    """Ends the third step of the recipe at a validation, as `how` says."""

    def __init__(self, how) -> None:
        self.how = how

    def on_validation(self, step, scores):
        if callable(self.how):
            return self.how()
        return self.how if step >= 4 else None


def _raises():
    raise StopIteration("by hand")


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (True, "Ends.on_validation said so"),
        ("well", "Ends.on_validation: well"),
        (_raises, "Ends.on_validation: by hand"),
    ],
)
def test_a_callback_stops_training_with_its_reason(how, why: str, tmp_path: Path) -> None:
    run = recipe(SHIPPED).run(tmp_path / "run", callbacks=[Ends(how)])
    steps = {each["name"]: each for each in run.results["steps"]}
    assert [steps[name]["stopped"] for name in STEPS] == [why] * 3
    stops = [each for each in records(run.folder / "log.jsonl") if each["kind"] == "stop"]
    assert [each["why"] for each in stops] == [why] * 3
    assert f"stopped early: {why}" in (run.folder / "report.html").read_text(encoding="utf-8")
    watch = Watch()
    recipe(SHIPPED).run(tmp_path / "run", callbacks=[Ends(how)], watch=watch)
    assert watch.steps("skipped") == ["teacher", "student_alone", "student", "student_onnx", "benchmark"]


def test_what_is_no_callback_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="callbacks: dict has neither on_step nor on_validation"):
        recipe(SHIPPED).run(tmp_path / "run", callbacks=[{}])


def test_an_error_of_a_callback_is_an_error(tmp_path: Path) -> None:
    class Wrong:
        def on_step(self, step, losses):
            return losses["nothing"]

    with pytest.raises(KeyError, match="nothing"):
        recipe(SHIPPED).run(tmp_path / "run", callbacks=[Wrong()])


def test_distill_takes_callbacks_and_a_rule(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = [(torch.randn(16, 3), torch.arange(16) % 2) for _ in range(4)]
    seen = Keeps()
    found = dc.distill(
        torch.nn.Linear(3, 2), torch.nn.Linear(3, 2), data, val=data, epochs=50, out=tmp_path / "run", callbacks=[seen],
        stop={"at": 0.0}, log_every=1, device="cpu",
    )  # fmt: skip
    step = next(each for each in found.run.results["steps"] if each["name"] == "student")
    assert step["stopped"].endswith("which reaches the 0 asked for")
    assert seen.validations[0][0] == seen.steps[-1][0]


# The rule in a recipe.


def test_a_step_stops_by_its_rule_and_keeps_its_best(tmp_path: Path) -> None:
    rule = {"patience": 2, "metric": "cross_entropy", "min_delta": 10.0}
    run = recipe(SHIPPED, steps__2__stop=rule, steps__2__budget={"epochs": 30}).run(tmp_path / "run")
    log = [each for each in records(run.folder / "log.jsonl") if each["step"] == "student"]
    scored = [each for each in log if each["kind"] == "validation"]
    assert len(scored) == 3
    best = max(each["scores"]["accuracy"] for each in scored)  # select stays: the task's own metric
    assert run.artifact("student").scores["accuracy"] == best
    why = next(each for each in log if each["kind"] == "stop")["why"]
    assert why.startswith("cross_entropy gained no more than 10 in 2 validations")


def test_another_metric_is_refused_with_those_there_are() -> None:
    with pytest.raises(RecipeError, match=r"steps\[2\]\.stop\.metric: 'acc'.*accuracy, f1, auc"):
        recipe(SHIPPED, steps__2__stop={"patience": 1, "metric": "acc"})


def test_a_rule_needs_validation_data(tmp_path: Path) -> None:
    wrong = recipe(SHIPPED, steps__2__stop={"patience": 1}, data={"use": "digits", "limit": 200, "validation": 0.0})
    with pytest.raises(RecipeError, match="stop needs a validation split"):
        wrong.run(tmp_path / "run")
