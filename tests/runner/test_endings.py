"""How runs end, and what then vouches for what they say: missed budgets, edits, interruptions, older runs."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from decoct.artifact import MANIFEST, SEAL, read_manifest, sealed
from decoct.cli import app as cli
from decoct.errors import BudgetMissed, IntegrityError
from decoct.report.page import write_page
from decoct.report.run_manifest import FILES, RUN_MANIFEST, read_run_manifest
from decoct.report.runs import read_run
from decoct.runner.execution import plan
from decoct.runner.verify import verify_run
from tiny import LEARN, PAIR, SHIPPED, Watch, recipe

SMALL: dict[str, Any] = {
    **SHIPPED,
    "models": {"large": {"use": "mlp", "hidden": [16]}, "small": {"use": "mlp", "hidden": [8]}},
}
"""Teacher, student alone, student, its file and a benchmark, all by small nets."""
STEPS = ["01-teacher", "02-student_alone", "03-student", "04-student_onnx", "05-benchmark"]
TINY_BUDGET = {"steps__3__max_size_bytes": 100}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recipe(SMALL).run(tmp_path_factory.mktemp("ends") / "run").folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def wrongs(folder: Path) -> dict[str, str]:
    return {Path(each.artifact).name: "; ".join(each.wrong) for each in verify_run(folder) if each.wrong}


def notes(folder: Path) -> str:
    return "; ".join(each.note for each in verify_run(folder))


def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8").replace("&#39;", "'")


def resealed(path: Path, content: dict[str, Any]) -> None:
    """Writes a sealed file anew, as one does who knows how."""
    content.pop(SEAL, None)
    path.write_text(sealed(content), encoding="utf-8")


# A missed budget.


def test_after_a_missed_budget_the_page_says_so_and_shows_no_file_of_before(run: Path, capsys: Any) -> None:
    assert "student_onnx" in page(run)
    with pytest.raises(BudgetMissed) as missed:
        recipe(SMALL, **TINY_BUDGET).run(run)
    written = page(run)
    capsys.readouterr()
    assert cli.call(["report", str(run)]) == 0
    said = capsys.readouterr().out
    assert "the run failed at student_onnx" in said
    for shown in (written, page(run)):
        assert "This run failed at the step student_onnx (exit code 5)" in shown
        assert "04-student_onnx/model.onnx" not in shown
        assert "max_size_bytes: 100" in shown
    results = json.loads((run / "results.json").read_text())
    assert results["failed"]["message"] == str(missed.value)
    assert results["models"] == []
    assert [each.get("state", "") for each in results["steps"]] == ["", "", "", "failed", "not reached"]
    assert not (run / "04-student_onnx").exists()
    assert "failed at the step student\\_onnx" in (run / "model_card.md").read_text()
    assert cli.call(["verify", str(run)]) == 0
    assert "failed at student_onnx" in notes(run)


def test_after_a_missed_budget_the_recipe_of_before_finds_its_file_again(run: Path) -> None:
    before = (run / "04-student_onnx" / MANIFEST).read_bytes()
    with pytest.raises(BudgetMissed):
        recipe(SMALL, **TINY_BUDGET).run(run)
    assert [each.skip for each in plan(recipe(SMALL), run)] == [True] * 5
    watch = Watch()
    recipe(SMALL).run(run, watch=watch)
    assert watch.steps("started") == []
    assert (run / "04-student_onnx" / MANIFEST).read_bytes() == before
    assert wrongs(run) == {}
    assert [each["wall_s"] > 0 for each in json.loads((run / "results.json").read_text())["steps"]] == [True] * 5


def test_an_error_that_nobody_raised_on_purpose_is_told_too(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from decoct.steps.shipping.export import Export

    def broken(*_: Any) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(Export, "run", broken)
    with pytest.raises(RuntimeError):
        recipe(SMALL, steps__3__samples=50).run(run)
    assert "This run failed at the step student_onnx (exit code 1): a fault of ours." in page(run)
    assert wrongs(run) == {}


# Folders of another recipe.


def test_folders_of_an_earlier_recipe_do_not_stay_beside_new_ones(run: Path) -> None:
    steps = [SMALL["steps"][0], SMALL["steps"][2], *SMALL["steps"][3:]]
    steps[-1] = {**steps[-1], "inputs": {"teacher": "teacher", "student": "student_onnx"}}
    fewer = recipe({**SMALL, "steps": steps})
    fewer.run(run)
    assert sorted(path.name for path in run.glob("[0-9]*")) == [
        "01-teacher",
        "02-student",
        "03-student_onnx",
        "04-benchmark",
    ]
    assert sorted(path.name for path in (run / "earlier").iterdir()) == STEPS[1:]
    assert wrongs(run) == {}
    watch = Watch()
    recipe(SMALL).run(run, watch=watch)
    assert watch.steps("started") == []
    assert sorted(path.name for path in run.glob("[0-9]*")) == STEPS
    assert wrongs(run) == {}


def test_seeds_that_are_not_asked_for_are_kept_for_when_they_are(tmp_path: Path) -> None:
    plain = {**SMALL, "steps": SMALL["steps"][:3]}
    recipe(plain).run(tmp_path, seeds=2)
    recipe(plain).run(tmp_path)
    assert not list(tmp_path.glob("*seed-1"))
    assert wrongs(tmp_path) == {}
    watch = Watch()
    recipe(plain).run(tmp_path, seeds=2, watch=watch)
    assert watch.steps("started") == []
    assert len(list(tmp_path.glob("*seed-1"))) == 2
    assert not (tmp_path / "earlier").exists() or not list((tmp_path / "earlier").iterdir())


def test_a_step_made_anew_keeps_nothing_of_before(run: Path) -> None:
    recipe(SMALL, steps__3__samples=50).run(run)
    assert not (run / "earlier").exists()
    assert sorted(path.name for path in run.glob("[0-9]*")) == STEPS


# Edits.


@pytest.mark.parametrize("name", FILES)
def test_an_edit_of_any_file_of_a_run_is_found(run: Path, name: str) -> None:
    assert cli.call(["verify", str(run)]) == 0
    content = (run / name).read_bytes()
    (run / name).write_bytes(content + b"\n" if name != "results.json" else content.replace(b'"n": ', b'"n":  ', 1))
    assert wrongs(run) == {"run": f"{name} is damaged: its SHA-256 differs from run.json; decoct run writes it again"}
    assert cli.call(["verify", str(run)]) == 6
    assert cli.call(["report", str(run)]) == 6
    recipe(SMALL).run(run)
    assert wrongs(run) == {}


@pytest.mark.parametrize("name", [*FILES, RUN_MANIFEST])
def test_a_file_of_a_run_that_is_gone_is_missed(run: Path, name: str) -> None:
    (run / name).unlink()
    assert wrongs(run)["run"].startswith(f"{name} is missing")
    assert cli.call(["verify", str(run)]) == 6


def test_an_edited_manifest_of_a_run_is_found(run: Path) -> None:
    path = run / RUN_MANIFEST
    path.write_text(path.read_text().replace('"finished"', '"running"'))
    assert "run.json is damaged" in wrongs(run)["run"]
    assert cli.call(["report", str(run)]) == 6


EDITS = {
    "quality": lambda results: results["models"][2]["quality"].update(accuracy=0.99),
    "a figure more": lambda results: results["models"][2]["quality"].update(made_up=0.99),
    "latency": lambda results: results["models"][0]["latency"].update(p50_ms=99.0),
    "a model more": lambda results: results["models"].append({"name": "better", "quality": {"accuracy": 1.0}}),
    "a comparison": lambda results: results["comparisons"].append({"better": "student", "than": "teacher"}),
    "machine": lambda results: results["machine"].update(processor="a slow one"),
}


@pytest.mark.parametrize("what", EDITS)
def test_figures_that_no_artifact_vouches_for_are_refused_though_every_checksum_fits(
    run: Path, what: str, capsys: Any
) -> None:
    results = json.loads((run / "results.json").read_text())
    EDITS[what](results)
    (run / "results.json").write_text(json.dumps(results))
    fitted(run)
    before = page(run)
    assert "no artifact vouches for" in wrongs(run)["run"]
    capsys.readouterr()
    assert cli.call(["report", str(run)]) == 6
    assert "results.json: no artifact vouches for" in capsys.readouterr().err
    assert page(run) == before


def test_a_log_and_an_artifact_made_to_fit_are_found(run: Path) -> None:
    whole = Path(shutil.copytree(run, run.parent / "whole"))
    (run / "log.jsonl").write_text((run / "log.jsonl").read_text().replace('"loss": ', '"loss": 0', 1))
    fitted(run)
    assert wrongs(run)["run"].startswith("log.jsonl: no artifact vouches for it")
    manifest = read_manifest(whole / "05-benchmark")
    resealed(whole / "05-benchmark" / MANIFEST, {**manifest, "meta": {**manifest["meta"], "more": 1}})
    assert wrongs(whole)["whole"].startswith("05-benchmark: manifest.json is not what the run wrote")


def fitted(folder: Path) -> None:
    """Gives the run's manifest the checksums of its files as they are now."""
    from decoct.report.run_manifest import seal

    manifest = read_run_manifest(folder)
    assert manifest is not None
    seal(folder, manifest)


# Runs of 0.1.0, and what keeps a run whole.


def test_a_run_without_a_manifest_is_not_vouched_for_and_no_error(run: Path, capsys: Any) -> None:
    older(run)
    assert cli.call(["verify", str(run)]) == 0
    assert "not vouched for" in capsys.readouterr().out
    assert cli.call(["report", str(run)]) == 0
    assert "not vouched for" in capsys.readouterr().out
    assert "These figures are not vouched for" in page(run)
    recipe(SMALL).run(run)
    assert "not vouched for" not in notes(run) + page(run)


def older(run: Path) -> None:
    """The run as 0.1.0 would have left it."""
    (run / RUN_MANIFEST).unlink()
    results = json.loads((run / "results.json").read_text())
    del results["sealed"]
    (run / "results.json").write_text(json.dumps(results))


def test_a_page_written_again_and_steps_applied_leave_a_run_whole(run: Path) -> None:
    (run / "report.html").write_text("an old page")
    fitted(run)
    assert cli.call(["report", str(run)]) == 0
    assert page(run) != "an old page"
    assert wrongs(run) == {}
    assert cli.call(["report", str(run), "--out", str(run.parent / "elsewhere.html")]) == 0
    assert cli.call(["apply", "export", str(run / "03-student"), "--out", str(run / "more")]) == 0
    assert cli.call(["label", str(run / "01-teacher"), "--out", str(run / "answers")]) == 0
    assert wrongs(run) == {}
    assert cli.call(["report", str(run), "--out", str(run / "results.json")]) == 2
    assert wrongs(run) == {}


def test_a_page_is_whole_whenever_its_writer_dies(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer dies before its first, second and third file; each time all that is there fits."""
    from decoct.report import run_manifest

    class Died(BaseException):
        pass

    real = run_manifest.write_whole
    (run / "report.html").write_text("an old page")
    fitted(run)
    for dies_at in (1, 2, 3):
        seen: list[Path] = []

        def write(path: Path, content: Any, dies_at: int = dies_at, seen: list[Path] = seen) -> None:
            seen.append(path)
            if len(seen) == dies_at:
                raise Died
            real(path, content)

        monkeypatch.setattr(run_manifest, "write_whole", write)
        with pytest.raises(Died):
            write_page([run], run / "report.html")
        monkeypatch.setattr(run_manifest, "write_whole", real)
        assert [path.name for path in seen] == ["run.json", "report.html", "run.json"][:dies_at]
        assert wrongs(run) == {}
    assert len(read_run_manifest(run).files["report.html"]) == 2
    write_page([run], run / "report.html")
    assert len(read_run_manifest(run).files["report.html"]) == 1


SCRIPT = """
import os, signal, sys
sys.path[:0] = {paths!r}
from pathlib import Path
from test_endings import SMALL
from tiny import recipe
def watch(event):
    if event["event"] == "started" and event["step"] == "student_onnx":
        os.kill(os.getpid(), signal.SIGKILL)
recipe(SMALL, steps__2__batch_size=8).run(Path({folder!r}), watch=watch)
"""


def test_a_run_that_was_killed_is_not_called_damaged_and_shows_nothing_of_before(run: Path, capsys: Any) -> None:
    """The student is new, its file is not yet: it is the old student's."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(paths=paths, folder=str(run))], check=False)
    assert done.returncode == -signal.SIGKILL
    assert cli.call(["verify", str(run)]) == 0
    assert "did not end" in capsys.readouterr().out
    assert cli.call(["report", str(run)]) == 0
    assert "This run did not end" in page(run)
    assert "04-student_onnx/model.onnx" not in page(run)
    assert "batch_size: 8" in page(run)
    assert read_run(run).results.models == []
    recipe(SMALL, steps__2__batch_size=8).run(run)
    assert wrongs(run) == {}
    assert "did not end" not in page(run)


def test_a_page_needs_no_torch(run: Path) -> None:
    code = "import sys; from decoct.cli.app import call; sys.exit(call(sys.argv[1:]) or 99 * ('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code, "report", str(run)], check=False).returncode == 0


def test_reading_a_run_refuses_records_that_were_edited(run: Path) -> None:
    (run / "recipe.yaml").write_text("version: 1\n")
    with pytest.raises(IntegrityError, match=r"recipe\.yaml is damaged"):
        read_run(run)


def test_a_file_whose_step_moved_is_found_where_it_is_now(tmp_path: Path) -> None:
    """Two steps change places; the benchmark keeps its place and its key."""
    steps = [
        {"use": "train", "name": "b", "inputs": {"model": "small"}, **LEARN},
        {"use": "train", "name": "a", "inputs": {"model": "large"}, **LEARN},
        {**SHIPPED["steps"][-1], "inputs": {"a": "a", "b": "b"}, "reference": "a"},
    ]
    plain = {**PAIR, "models": SMALL["models"], "steps": steps}
    recipe(plain).run(tmp_path)
    turned = recipe({**plain, "steps": [steps[1], steps[0], steps[2]]}).run(tmp_path)
    for model in turned.results["models"]:
        assert (tmp_path / model["artifact"]).is_file()
        assert model["path"].endswith(f"-{model['name']}")
    assert wrongs(tmp_path) == {}


@pytest.mark.parametrize("name", ["../thesis", "..", "/tmp", "01-x/../../thesis", ""])
def test_a_manifest_that_names_folders_outside_of_its_run_moves_nothing(run: Path, name: str) -> None:
    """A run folder that somebody gave away: to go on in it must not move what lies beside it."""
    thesis = run.parent / "thesis"
    thesis.mkdir()
    content = json.loads((run / RUN_MANIFEST).read_text(encoding="utf-8"))
    resealed(run / RUN_MANIFEST, {**content, "folders": [*content["folders"], name]})
    before = sorted(run.parent.iterdir())
    assert "damaged" in "".join(wrongs(run).values())
    recipe(SMALL).run(run)
    assert sorted(run.parent.iterdir()) == before
    assert wrongs(run) == {}


def test_results_nested_without_end_are_damage(run: Path) -> None:
    (run / "results.json").write_text("[" * 100_000, encoding="utf-8")
    assert wrongs(run)
    (run / RUN_MANIFEST).unlink()
    assert wrongs(run)
