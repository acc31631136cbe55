"""verify notices what is absent from a run, not only what differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from decoct.cli import app as cli
from decoct.runner.execution import Run
from decoct.runner.verify import verify_run
from tiny import SHIPPED, recipe


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
    assert set(wrongs(copied)) == {"02-student_alone.seed-7"}
