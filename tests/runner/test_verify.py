"""verify notices what is absent from a run, not only what differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from decoct.artifact import MANIFEST, Artifact, writing
from decoct.cli import app as cli
from decoct.recipe.recipe import Recipe
from decoct.runner.execution import Run
from decoct.runner.verify import verify_run
from tiny import LEARN, PAIR, SHIPPED, recipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return recipe(SHIPPED).run(tmp_path_factory.mktemp("run") / "tiny")


@pytest.fixture
def copied(finished: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.folder, tmp_path / "run"))


def wrongs(folder: Path) -> dict[str, str]:
    return {Path(each.artifact).name: "; ".join(each.wrong) for each in verify_run(folder) if each.wrong}


def test_a_whole_run_is_good(copied: Path) -> None:
    assert wrongs(copied) == {}


def test_a_manifest_that_is_gone(copied: Path) -> None:
    (copied / "01-teacher/manifest.json").unlink()
    assert "manifest.json is missing" in wrongs(copied)["01-teacher"]
    assert "manifest.json is missing" in wrongs(copied / "01-teacher")["01-teacher"]
    assert cli.call(["verify", str(copied)]) == 6


def test_a_step_that_is_gone_and_the_file_made_from_it(copied: Path) -> None:
    shutil.rmtree(copied / "03-student")
    found = wrongs(copied)
    assert set(found) == {"03-student", "04-student_onnx"}
    assert "(03-student) is missing" in found["04-student_onnx"]


@pytest.mark.parametrize("content", ["{}", "[]", "null", "{", '{"steps": 1}', None])
def test_results_that_are_no_results(copied: Path, content: str | None) -> None:
    path = copied / "results.json"
    path.unlink() if content is None else path.write_text(content)
    assert wrongs(copied)["run"].startswith("results.json is ")


def test_a_recipe_that_is_none(copied: Path) -> None:
    (copied / "recipe.yaml").write_text("steps: [")
    assert wrongs(copied)["run"].startswith("recipe.yaml is damaged")


def test_a_folder_that_only_the_results_name(copied: Path) -> None:
    results = json.loads((copied / "results.json").read_text())
    results["steps"].append({**results["steps"][1], "seed": 7})
    (copied / "results.json").write_text(json.dumps(results))
    (copied / "run.json").unlink()  # of a run of 0.1.0, which had none
    del results["sealed"]
    (copied / "results.json").write_text(json.dumps(results))
    assert set(wrongs(copied)) == {"02-student_alone.seed-7"}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    steps = [
        {"use": "train", "name": "student", "inputs": {"model": "small"}, **LEARN},
        {"use": "quantize", "name": "int8", "inputs": {"model": "student"}, "scheme": {"use": "dynamic"}},
    ]
    return Recipe.parse({**PAIR, "steps": steps}).run(tmp_path_factory.mktemp("run") / "int8").folder


@pytest.mark.parametrize(("less", "good"), [(1.4, True), (1.75, False)])
@pytest.mark.parametrize("figure", ["max_abs_diff", "mean_abs_diff"])
def test_a_file_in_integers_may_be_half_as_far_again_from_its_model_as_recorded(
    quantized: Path, tmp_path: Path, figure: str, less: float, good: bool
) -> None:
    """On the same samples it is as far as recorded; the record is made smaller, the largest or the mean alone."""
    run = Path(shutil.copytree(quantized, tmp_path / "run"))
    folder = run / "02-int8"
    record, old = json.loads((folder / "exported.json").read_text()), Artifact.load(folder)
    assert record["verified"][figure] > 0.001, "0.0001 is allowed besides"
    record["verified"][figure] /= less
    with writing(folder, kind="exported", name=old.name, key=old.key, lineage=old.lineage, meta=old.meta) as draft:
        shutil.copytree(folder, draft.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        draft.write_json("exported.json", record)
    found = wrongs(run)
    assert set(found) - {"run"} == (set() if good else {"02-int8"})  # the run tells of the record that was changed
    assert good or "differs from its model by" in found["02-int8"]
