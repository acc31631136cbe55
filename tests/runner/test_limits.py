"""Limits on a chain as a whole: which artifacts are held against them, what is kept, and what then ships."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import decoct as dc
from decoct.cli.app import call
from decoct.errors import DataError, RecipeError
from decoct.recipe.graph import graph
from decoct.recipe.recipe import Recipe
from decoct.report.run_manifest import read_run_manifest
from decoct.runner.checking import check
from decoct.runner.execution import Run
from decoct.runner.limiting import judged_nodes, reference_of
from decoct.runner.verify import verify_run
from decoct.steps.base import Context
from decoct.steps.limits import Limits
from decoct.steps.shipping.limits import held as measured
from tiny import LEARN, PAIR, Watch, recipe

CHAIN: dict[str, Any] = {
    **PAIR,
    "models": {"large": {"use": "mlp", "hidden": [64]}, "small": {"use": "mlp", "hidden": [32]}},
    "data": {"use": "digits", "limit": 600},
    "steps": [
        {**PAIR["steps"][0], "budget": {"epochs": 20}},
        PAIR["steps"][1],
        {**PAIR["steps"][2], "budget": {"epochs": 20}},
        {"use": "export", "name": "student_onnx", "inputs": {"model": "student"}},
        {
            "use": "prune",
            "name": "pruned",
            "inputs": {"model": "student"},
            "scheme": {"use": "channels", "ratio": 0.9},
            "recover": {"use": "none"},
        },
        {"use": "export", "name": "pruned_onnx", "inputs": {"model": "pruned"}},
    ],
}
LIMITS = {"max_quality_loss": 0.2, "max_size_bytes": 15_000, "max_latency_ms": 1000.0, "max_memory_bytes": 10**9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("limits") / "run"


def run_with(folder: Path, limits: Mapping[str, Any], **settings: Any) -> Run:
    return recipe({**CHAIN, "limits": limits}).run(folder, **settings)


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    """Its pruned student is ruined on purpose: the way back leads to the file before it."""
    return run_with(folder, LIMITS)


def held(run: Run) -> dict[str, dict[str, Any]]:
    return {each["step"]: each for each in run.results["limits"]["steps"]}


def test_the_last_artifact_that_keeps_them_is_kept(run: Run) -> None:
    found = held(run)
    assert list(found) == ["student", "student_onnx", "pruned", "pruned_onnx"]
    assert {name: sorted(each["broken"]) for name, each in found.items()} == {
        "student": [],
        "student_onnx": [],
        "pruned": ["max_quality_loss"],
        "pruned_onnx": ["max_quality_loss"],
    }
    assert run.results["limits"]["kept"] == "student_onnx"
    assert run.kept is not None
    assert run.kept.folder == run.folder / "04-student_onnx"
    manifest = read_run_manifest(run.folder)
    assert manifest is not None
    assert manifest.kept == "04-student_onnx"


def test_what_is_found_is_so(run: Run) -> None:
    """Quality by running the file in ONNX Runtime on raw data, size by the file: no code of decoct in between."""
    task, data = run.recipe.task, run.recipe.data.open()
    split = data.splits["validation"]

    def accuracy(path: Path) -> float:
        session = onnxruntime.InferenceSession(str(path))
        batch = task.resolve(data).collate(split, np.arange(len(split)))
        (name,) = [each.name for each in session.get_inputs()]
        (logits, *_) = session.run(None, {name: batch.side("student").numpy()})
        return float((logits.argmax(1) == split.columns["label"]).mean())

    found = held(run)
    teacher = run.results["limits"]["reference_quality"]
    assert run.results["limits"]["reference"] == "teacher"
    assert teacher == pytest.approx(run.artifact("teacher").scores["accuracy"])
    for name in ("student_onnx", "pruned_onnx"):
        path = run.artifact(name).file("model.onnx")
        assert found[name]["found"]["max_quality_loss"] == pytest.approx(teacher - accuracy(path))
        assert found[name]["found"]["max_size_bytes"] == path.stat().st_size
        assert found[name]["found"]["max_memory_bytes"] > 0
        assert 0 < found[name]["found"]["max_latency_ms"] < 1000
    for model, file in (("student", "student_onnx"), ("pruned", "pruned_onnx")):  # a model is held as its float file
        for name in ("max_quality_loss", "max_size_bytes"):
            assert found[model]["found"][name] == pytest.approx(found[file]["found"][name], abs=64)


def test_what_ships_is_what_is_kept(run: Run) -> None:
    assert dc.load(run.folder).path == run.folder / "04-student_onnx/model.onnx"
    card = (run.folder / "model_card.md").read_text(encoding="utf-8")
    assert card.startswith("# student\\_onnx\n")
    assert "File: 04-student\\_onnx/model.onnx" in card
    page = (run.folder / "report.html").read_text(encoding="utf-8").replace("\xa0", " ")
    loss = held(run)["pruned_onnx"]["broken"]["max_quality_loss"]
    assert f"{100 * loss:.1f} points too much" in page
    assert "Kept is student_onnx (04-student_onnx)" in page
    assert "pruned_onnx broke max_quality_loss: it loses 0." in page
    assert not [line for each in verify_run(run.folder) for line in each.wrong]


def test_what_was_measured_stays_and_limits_change_no_step(run: Run) -> None:
    watch = Watch()
    again = run_with(run.folder, {**LIMITS, "max_size_bytes": 100}, watch=watch)
    assert watch.steps("skipped") == [step["name"] for step in CHAIN["steps"]]
    assert {name: each["found"] for name, each in held(again).items()} == {
        name: each["found"] for name, each in held(run).items()
    }
    assert again.kept is None
    assert again.results["limits"]["nearest"] == "student_onnx" or held(again)["student"]["distance"] > 0
    with pytest.raises(DataError, match="no artifact of it keeps its limits"):
        dc.load(run.folder)
    card = (run.folder / "model_card.md").read_text(encoding="utf-8")
    assert "No artifact of this run keeps its limits, so none is kept. The nearest is" in card
    restored = run_with(run.folder, LIMITS)
    assert restored.results["limits"]["kept"] == "student_onnx"


def test_the_command_ends_with_5_where_none_keeps_them(run: Run, tmp_path: Path, capsys) -> None:
    text = recipe({**CHAIN, "limits": LIMITS}).yaml()
    (tmp_path / "recipe.yaml").write_text(text)
    words = ["run", str(tmp_path / "recipe.yaml"), "--out", str(run.folder)]
    assert call(words) == 0
    assert "Kept is student_onnx" in capsys.readouterr().out
    assert call([*words, "limits.max_size_bytes=100", "--json"]) == 5
    assert json.loads(capsys.readouterr().out)["results"]["limits"]["kept"] is None
    assert call(words) == 0


def test_a_quantile_is_of_the_calls(run: Run) -> None:
    """So far apart that no noise turns them round."""
    data = run.recipe.data.open()
    room = Context(run.recipe.task.resolve(data), data, "", run.folder, run.folder, seed=0, device="cpu")
    file = run.artifact("student_onnx")
    low, high = (
        measured(Limits(max_latency_ms=1000.0, quantile=each), file, room, None)["max_latency_ms"]
        for each in (0.01, 0.99)
    )
    assert low is not None
    assert high is not None
    assert 0 < low < high


# Which artifacts, against which reference.

DISTILLED = [*PAIR["steps"]]
EXPORTS = [
    {"use": "export", "name": "student_onnx", "inputs": {"model": "student"}},
    {"use": "export", "name": "teacher_onnx", "inputs": {"model": "teacher"}},
    {"use": "export", "name": "alone_onnx", "inputs": {"model": "student_alone"}},
]
LABELLED = [
    PAIR["steps"][0],
    {"use": "label", "name": "labels", "inputs": {"teacher": "teacher"}},
    {"use": "distill", "name": "student", "inputs": {"model": "small", "teacher": "labels"}, **LEARN},
]
PRUNE = {"use": "prune", "scheme": {"use": "channels", "ratio": 0.5}, **LEARN}


@pytest.mark.parametrize(
    ("steps", "judged", "reference"),
    [
        (DISTILLED, ["student"], "teacher"),
        ([*DISTILLED, *EXPORTS], ["student", "student_onnx"], "teacher"),
        (LABELLED, ["student"], "teacher"),
        ([PAIR["steps"][0], {"use": "export", "name": "file"}], ["teacher", "file"], "teacher"),
        (
            [PAIR["steps"][0], {**PRUNE, "name": "less", "inputs": {"model": "teacher", "teacher": "teacher"}}],
            ["less"],
            "teacher",
        ),
        (
            [*DISTILLED, {**PRUNE, "name": "less", "inputs": {"model": "student", "teacher": "teacher"}}, *EXPORTS],
            ["student", "less", "student_onnx"],
            "teacher",
        ),
    ],
    ids=["distil", "exports", "store", "alone", "pruned teacher", "branches"],
)
def test_the_chain_and_its_teacher(steps: list[dict[str, Any]], judged: list[str], reference: str) -> None:
    made = Recipe.parse({**copy.deepcopy(PAIR), "steps": copy.deepcopy(steps)})
    nodes = graph(made, [0, 1])
    found = judged_nodes(nodes)
    assert [node.step.name for node in found] == judged
    assert {node.seed for node in found} == {0}
    at = reference_of(found[0], nodes)
    assert at is not None
    assert at.step.name == reference


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({}, "no limit; give max_quality_loss"),
        ({"quantile": 0.9}, "no limit"),
        ({"quantile": 0.9, "max_size_bytes": 1}, "belongs to max_latency_ms"),
        ({"max_sise_bytes": 1}, "did you mean max_size_bytes"),
        ({"max_latency_ms": 1, "quantile": 1.0}, "quantile"),
        ({"max_quality_loss": -0.1}, "max_quality_loss"),
    ],
)
def test_limits_that_say_nothing_are_refused(limits: dict[str, Any], why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        recipe({**PAIR, "limits": limits})


def test_a_loss_needs_validation_data(tmp_path: Path) -> None:
    wrong = recipe(
        {**PAIR, "limits": {"max_quality_loss": 0.1}, "data": {"use": "digits", "limit": 200, "validation": 0.0}}
    )
    for act in (check, lambda made: made.run(tmp_path / "run")):
        with pytest.raises(RecipeError, match=r"limits\.max_quality_loss needs a validation split"):
            act(wrong)


def test_a_chain_is_needed() -> None:
    steps = [PAIR["steps"][0], {"use": "label", "name": "labels", "inputs": {"teacher": "teacher"}}]
    with pytest.raises(RecipeError, match="limits: no step of this recipe gives a model of its chain"):
        check(recipe({**PAIR, "steps": steps, "limits": {"max_size_bytes": 1}}))
