"""Running a recipe: what a folder holds, what is skipped, what is found damaged, seeds, and what stays apart."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from decoct.artifact import MANIFEST, SEAL, Artifact, _checksums, _seal, damaged, read_manifest
from decoct.errors import IntegrityError, ResourceError
from decoct.recipe.graph import graph
from decoct.recipe.recipe import Recipe
from decoct.runner.execution import Execution, Options, Run, plan, prepare
from decoct.runner.folders import lock
from decoct.runner.verify import verify_run
from decoct.spec import Choice
from tiny import PAIR, SHIPPED, Watch, recipe, records, timeless, tree

STEPS = ["teacher", "student_alone", "student", "student_onnx", "benchmark"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return recipe(SHIPPED).run(tmp_path_factory.mktemp("run") / "tiny")


@pytest.fixture
def copied(finished: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.folder, tmp_path / "run"))


def again(folder: Path, plain=SHIPPED, *, seeds: int = 1, **changes) -> Watch:
    watch = Watch()
    recipe(plain, **changes).run(folder, watch=watch, seeds=seeds)
    return watch


def flip(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


# What a folder holds.


def test_a_folder_holds_what_the_interface_says(finished: Run) -> None:
    top = {path.name for path in finished.folder.iterdir()}
    folders = {f"{number:02d}-{name}" for number, name in enumerate(STEPS, 1)}
    assert (
        top
        == {"recipe.yaml", "results.json", "report.html", "model_card.md", "log.jsonl", "run.json", ".lock"} | folders
    )
    for name in ("01-teacher", "02-student_alone", "03-student"):
        files = {path.name for path in (finished.folder / name).iterdir()}
        assert {"model.safetensors", "model.json", "scores.json", "manifest.json"} <= files
        assert json.loads((finished.folder / name / "scores.json").read_text())["accuracy"] >= 0
    assert (finished.folder / "04-student_onnx/model.onnx").is_file()
    for name in folders:
        manifest = read_manifest(finished.folder / name)
        present = {path.name for path in (finished.folder / name).iterdir()} - {"manifest.json"}
        assert set(manifest["files"]) == present
        assert all(re.fullmatch("[0-9a-f]{64}", each["sha256"]) for each in manifest["files"].values())


def test_results_have_the_keys_of_the_interface(finished: Run) -> None:
    results = json.loads((finished.folder / "results.json").read_text())
    assert results == json.loads(json.dumps(finished.results))
    assert set(results) >= {"decoct", "recipe", "seed", "device", "wall_s", "models", "versions"}
    assert results["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert results["wall_s"] > 0
    assert results["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert Recipe.parse(results["recipe"]) == Recipe.load(finished.folder / "recipe.yaml") == finished.recipe
    assert [each["name"] for each in results["models"]] == ["teacher", "student_alone", "student"]
    student = results["models"][-1]
    keys = "name step path quality split n fidelity calibration parameters macs file_bytes latency artifact verified"
    assert set(keys.split()) <= set(student)
    assert (student["step"], student["path"]) == ("student_onnx", "04-student_onnx")
    assert student["artifact"] == "04-student_onnx/model.onnx"
    assert student["file_bytes"] == (finished.folder / student["artifact"]).stat().st_size
    assert student["parameters"] == (64 * 8 + 8) + (8 * 10 + 10)
    assert set(student["latency"]) >= {"runtime", "threads", "batch", "p50_ms", "p99_ms"}
    assert student["verified"]["max_abs_diff"] < 1e-4
    assert student["verified"]["agreement"] == 1.0
    assert student["n"] == 200
    assert set(student["fidelity"]) == {"agreement", "kl"}
    assert set(student["calibration"]) == {"ece"}


def test_the_log_names_step_and_seed(finished: Run) -> None:
    lines = list(records(finished.folder / "log.jsonl"))
    assert {each["step"] for each in lines} == {"teacher", "student_alone", "student"}
    assert {each["seed"] for each in lines} == {0}
    trained = [each for each in lines if each["step"] == "student" and each["kind"] == "train"]
    assert [each["step_number"] for each in trained] == [2, 4, 6]
    assert set(trained[0]["terms"]) == {"kd", "task_loss"}
    weights = trained[0]["weights"]
    for each in trained:
        total = sum(weights[name] * term for name, term in each["terms"].items())
        assert each["loss"] == pytest.approx(total, rel=1e-5)


def test_scores_of_an_artifact_are_its_best_validation(finished: Run) -> None:
    artifact = finished.artifact("student")
    validated = [each for each in records(artifact.folder / "log.jsonl") if each["kind"] == "validation"]
    assert artifact.scores["accuracy"] == max(each["scores"]["accuracy"] for each in validated)
    assert artifact.json("scores.json") == dict(artifact.scores)


def test_quality_is_what_the_shipped_file_says(finished: Run) -> None:
    import onnxruntime
    from sklearn.metrics import accuracy_score, f1_score

    test = finished.recipe.data.open().splits["test"]
    session = onnxruntime.InferenceSession(finished.folder / "04-student_onnx/model.onnx")
    assert [each.name for each in session.get_inputs()] == ["image"]
    [logits] = session.run(["logits"], {"image": test.columns["image"].transpose(0, 3, 1, 2)})
    found = finished.results["models"][-1]["quality"]
    assert found["accuracy"] == accuracy_score(test.columns["label"], logits.argmax(1))
    assert found["f1"] == pytest.approx(f1_score(test.columns["label"], logits.argmax(1), average="macro"), rel=1e-12)


def test_the_task_of_an_artifact_rebuilds_and_needs_no_data(finished: Run) -> None:
    from decoct.models.saving import load_model
    from decoct.outputs import Needs

    artifact = finished.artifact("student")
    task = Choice("decoct.tasks").validate(artifact.json("task.json"))
    data = finished.recipe.data.open()
    assert task == finished.recipe.task.resolve(data)
    assert Choice("decoct.tasks").validate(finished.artifact("student_onnx").json("task.json")) == task
    batch = task.collate(data.splits["validation"], np.arange(8))
    with torch.no_grad():
        logits = task.forward(load_model(artifact), batch, Needs(), artifact.meta["side"]).logits
    assert logits is not None
    assert logits.shape == (8, 10)


def test_the_teacher_is_in_no_student_artifact(finished: Run) -> None:
    teacher = load_file(finished.folder / "01-teacher/model.safetensors")
    student = load_file(finished.folder / "03-student/model.safetensors")
    alone = load_file(finished.folder / "02-student_alone/model.safetensors")
    assert student.keys() == alone.keys()
    assert not any(name.startswith(("teacher", "criterion", "optimizer")) for name in student)
    shapes = {tuple(each.shape) for each in student.values()}
    assert not shapes & {tuple(each.shape) for each in teacher.values() if each.ndim == 4}
    bytes_of = sum(each.numel() * each.element_size() for each in student.values())
    assert bytes_of <= (finished.folder / "03-student/model.safetensors").stat().st_size < bytes_of + 2000
    biggest = (finished.folder / "01-teacher/model.safetensors").stat().st_size
    assert sum(path.stat().st_size for path in (finished.folder / "03-student").iterdir()) < biggest


# What is skipped.


def test_a_second_run_skips_every_step_and_changes_no_artifact(copied: Path, finished: Run) -> None:
    before = tree(copied)
    watch = again(copied)
    assert watch.steps("skipped") == STEPS
    assert watch.steps("started") == []
    assert {watch.why(step) for step in STEPS} == {"unchanged"}
    after = tree(copied)
    assert {name for name in after if after[name] != before.get(name)} <= {
        "results.json",
        "report.html",
        "model_card.md",
        "run.json",
    }
    assert before.keys() == after.keys()
    results = json.loads((copied / "results.json").read_text())
    assert results["models"] == finished.results["models"]
    assert [each["skipped"] for each in results["steps"]] == [True] * 5
    made = [each["wall_s"] for each in finished.results["steps"]]
    assert [each["wall_s"] for each in results["steps"]] == made
    assert results["wall_s"] >= sum(made) > 0


@pytest.mark.parametrize(
    ("changes", "made"),
    [
        ({"steps__4__repeats": 5}, STEPS[4:]),
        ({"steps__3__samples": 100}, STEPS[3:]),
        ({"steps__2__objective": [{"use": "kd"}, {"use": "cross_entropy"}]}, STEPS[2:]),
        ({"steps__2__checkpoint_seconds": 5.0}, []),
    ],
    ids=["benchmark", "export", "objective", "checkpoints"],
)
def test_a_changed_key_makes_that_step_and_what_follows(copied: Path, changes: dict, made: list[str]) -> None:
    before = tree(copied)
    planned = {each.node.step.name: each for each in plan(recipe(SHIPPED, **changes), copied)}
    assert tree(copied) == before
    watch = again(copied, **changes)
    assert watch.steps("started") == watch.steps("done") == made
    assert watch.steps("skipped") == [step for step in STEPS if step not in made]
    assert [name for name, each in planned.items() if not each.skip] == made
    if made:
        assert watch.why(made[0]) == planned[made[0]].why == "its settings or inputs changed"
    for step in watch.steps("skipped"):
        assert watch.why(step) == planned[step].why == "unchanged"


def test_a_plan_of_a_new_folder_makes_nothing(tmp_path: Path) -> None:
    planned = plan(recipe(SHIPPED), tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    assert [each.skip for each in planned] == [False] * 5
    assert [each.why for each in planned][:3] == ["new", "new", "follows 01-teacher"]


def test_other_data_make_everything_again(copied: Path) -> None:
    assert not any(each.skip for each in plan(recipe(SHIPPED, data__limit=190), copied))
    assert again(copied, data__limit=190).steps("started") == STEPS


def test_a_precision_for_all_steps_is_part_of_what_they_are(tmp_path: Path) -> None:
    data = {**PAIR, "steps": [PAIR["steps"][1], {**PAIR["steps"][1], "name": "plain", "precision": "no"}]}
    recipe(data).run(tmp_path)
    planned = plan(recipe(data), tmp_path, precision="bf16")
    assert [each.skip for each in planned] == [False, True]


def test_keys_are_those_in_the_manifests_and_measuring_alone_hangs_on_the_machine(copied: Path) -> None:
    made = recipe(SHIPPED)
    execution = Execution(made, copied, *prepare(made, Options()), Options())
    for node in graph(made, [0]):
        assert execution.key(node) == read_manifest(copied / node.folder)["key"]
        execution.artifacts[node.id] = Artifact.load(copied / node.folder)
        assert node.step.depends_on_machine == (node.step.use == "benchmark")


@pytest.mark.parametrize("use", ["export", "quantize", "search"])
def test_a_budget_in_time_hangs_on_the_machine_and_no_other_does(use: str) -> None:
    from decoct.steps import CATALOGUE

    inner = {"step": {"use": "prune"}, "setting": "scheme.ratio", "low": 0.1, "high": 0.9} if use == "search" else {}
    step = CATALOGUE.resolve(use)
    assert step.parse({"name": "it", **inner, "max_latency_ms": 5.0}).depends_on_machine
    assert not step.parse({"name": "it", **inner, "max_size_bytes": 5}).depends_on_machine


# What is found damaged.


@pytest.mark.parametrize("damage", ["flipped", "removed", "added", "manifest"])
def test_damage_is_found_and_named_and_that_step_is_made_again(copied: Path, finished: Run, damage: str) -> None:
    weights = copied / "01-teacher/model.safetensors"
    if damage == "flipped":
        flip(weights)
        wanted = "model.safetensors is damaged"
    elif damage == "removed":
        weights.unlink()
        wanted = "model.safetensors is missing"
    elif damage == "added":
        (weights.parent / "more").write_text("")
        wanted = "more was added"
    else:
        (weights.parent / "manifest.json").write_text("{}")
        wanted = "manifest.json is damaged"
    [wrong] = [each for each in verify_run(copied) if each.wrong]
    assert wrong.artifact == str(copied / "01-teacher")
    assert wanted in wrong.wrong[0]
    watch = again(copied)
    assert watch.steps("started") == ["teacher"]
    assert wanted in watch.why("teacher")
    made = load_file(weights)
    for name, each in load_file(finished.folder / "01-teacher/model.safetensors").items():
        assert torch.equal(made[name], each)
    assert not any(each.wrong for each in verify_run(copied))


def test_a_plan_says_what_is_damaged(copied: Path) -> None:
    flip(copied / "04-student_onnx/model.onnx", 100)
    planned = {each.node.step.name: each for each in plan(recipe(SHIPPED), copied)}
    assert "model.onnx is damaged" in planned["student_onnx"].why
    assert [name for name, each in planned.items() if each.skip] == STEPS[:3]


def test_verify_runs_the_shipped_file_once_more(copied: Path) -> None:
    found = {Path(each.artifact).name: each for each in verify_run(copied)}
    assert "says what its model says" in found["04-student_onnx"].parity
    assert not any(each.wrong for each in found.values())
    # another student's file under a manifest that fits it: every checksum is right and the file says otherwise
    other = recipe(SHIPPED, steps__2__budget={"steps": 1}).run(copied.parent / "other")
    shutil.copy(other.folder / "04-student_onnx/model.onnx", copied / "04-student_onnx/model.onnx")
    folder = copied / "04-student_onnx"
    manifest = {**read_manifest(folder)}
    (folder / MANIFEST).unlink()
    manifest["files"] = _checksums(folder)
    (folder / MANIFEST).write_text(json.dumps({**manifest, SEAL: _seal(manifest)}))
    assert damaged(folder) == []
    [wrong] = [each for each in verify_run(copied) if each.wrong]
    assert "differs from its model" in wrong.wrong[0]


class Stop(Exception):
    """Raised from a watcher to end a run where it stands."""


def stopped_in_student(folder: Path) -> None:
    """A run that has checkpoints of the student and no artifact of it."""

    def watch(event) -> None:
        if event["step"] == "student" and event["event"] == "progress" and event["done"] >= 6:
            raise Stop

    with pytest.raises(Stop):
        recipe().run(folder, watch=watch)
    assert len(list((folder / ".03-student.work").glob("checkpoint-*"))) >= 2


def test_a_damaged_checkpoint_is_left_out_and_the_end_is_the_same(tmp_path: Path, finished: Run) -> None:
    stopped_in_student(tmp_path)
    newest = max(tmp_path.glob(".03-student.work/checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    flip(newest / "state.safetensors")
    [node] = [each for each in plan(recipe(), tmp_path) if each.node.step.name == "student"]
    assert node.why == "new, continues from its checkpoint"
    with pytest.warns(UserWarning, match=r"checkpoint-\d+ is left out: state.safetensors is damaged"):
        watch = again(tmp_path, PAIR)
    assert watch.steps("started") == ["student"]
    made, wanted = (load_file(path / "03-student/model.safetensors") for path in (tmp_path, finished.folder))
    assert all(torch.equal(made[name], wanted[name]) for name in wanted)
    assert timeless(tmp_path / "03-student/log.jsonl") == timeless(finished.folder / "03-student/log.jsonl")
    assert not list(tmp_path.glob(".*.work"))


def test_checkpoints_of_other_settings_are_dropped_and_no_plan_counts_on_them(tmp_path: Path, finished: Run) -> None:
    stopped_in_student(tmp_path)
    changes = {"steps__2__budget": {"steps": 5}}
    [node] = [each for each in plan(recipe(**changes), tmp_path) if each.node.step.name == "student"]
    assert node.why == "new"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again(tmp_path, PAIR, **changes)
    assert max(each.get("step") for each in records(tmp_path / "03-student/log.jsonl")) == 5


def test_what_killed_processes_left_is_removed(copied: Path) -> None:
    for name in (".03-student.work", ".03-student.old", ".03-student.writing"):
        (copied / name).mkdir()
        (copied / name / "left").write_text("")
    again(copied)
    assert not list(copied.glob(".03-student.*"))


def test_no_checkpoint_holds_the_teacher(tmp_path: Path) -> None:
    stopped_in_student(tmp_path)
    teacher = load_file(tmp_path / "01-teacher/model.safetensors")
    big = {tuple(each.shape) for each in teacher.values() if each.ndim == 4}
    for folder in tmp_path.glob(".03-student.work/checkpoint-*"):
        held = load_file(folder / "state.safetensors")
        assert held
        assert {name.partition("/")[0] for name in held} <= {"student", "optimizer", "criterion", "random", "best"}
        assert not {tuple(each.shape) for each in held.values()} & big


# Who holds a folder.


def holding(folder: Path) -> subprocess.Popen:
    code = (
        "import sys, time; from pathlib import Path; from decoct.runner.folders import lock\n"
        "with lock(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(600)"
    )
    held = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert held.stdout is not None
    assert held.stdout.readline() == "held\n"
    return held


def test_a_second_process_is_refused_by_name_and_a_killed_one_lets_go(copied: Path) -> None:
    before = tree(copied)
    holder = holding(copied)
    try:
        with pytest.raises(ResourceError, match=f"held by process {holder.pid} on .*; wait until it ends"):
            again(copied)
        after = tree(copied)
        assert {name: each for name, each in after.items() if name != ".holder"} == before
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    assert again(copied).steps("skipped") == STEPS
    assert not (copied / ".holder").exists()


def test_a_run_that_fails_lets_go(tmp_path: Path) -> None:
    with pytest.raises(KeyError), lock(tmp_path):
        raise KeyError
    with lock(tmp_path):
        assert (tmp_path / ".holder").read_text().startswith(f"process {os.getpid()} on ")


def test_damage_in_an_artifact_from_elsewhere_stops_the_run(copied: Path, tmp_path: Path) -> None:
    models = {**PAIR["models"], "taught": {"use": "artifact", "path": str(copied / "01-teacher")}}
    data = {**PAIR, "models": models, "steps": [dict(PAIR["steps"][2])]}
    data["steps"][0]["inputs"] = {"model": "small", "teacher": "taught"}
    flip(copied / "01-teacher/model.safetensors")
    with pytest.raises(IntegrityError, match=r"model\.safetensors is damaged"):
        recipe(data).run(tmp_path / "taught")


def test_other_versions_of_the_libraries_are_told(copied: Path) -> None:
    results = json.loads((copied / "results.json").read_text(encoding="utf-8"))
    results["versions"]["torch"] = "1.0.0"
    (copied / "results.json").write_text(json.dumps(results), encoding="utf-8")
    with pytest.warns(UserWarning, match=r"kept, though made with torch 1\.0\.0 \(now 2"):
        recipe(SHIPPED).run(copied)


def test_a_teacher_that_was_trained_elsewhere_stands_beside_its_student(tmp_path: Path) -> None:
    """A model of the recipe that no step made is exported and measured like any other."""
    from safetensors.torch import save_file

    from decoct.models.base import Interface
    from decoct.models.small_resnet import SmallResNet

    torch.manual_seed(0)
    net = SmallResNet(width=4).build(Interface(kind="image", shape=(1, 8, 8), outputs=10)).eval()
    save_file(net.state_dict(), tmp_path / "mine.safetensors")
    large = {"use": "file", "path": str(tmp_path / "mine.safetensors"), "model": {"use": "small_resnet", "width": 4}}
    steps = [
        {**PAIR["steps"][2], "inputs": {"model": "small", "teacher": "large"}},
        {"use": "export", "name": "teacher_onnx", "inputs": {"model": "large"}},
        {"use": "export", "name": "student_onnx", "inputs": {"model": "student"}},
        {**SHIPPED["steps"][-1], "inputs": {"teacher": "teacher_onnx", "student": "student_onnx"}},
    ]
    found = recipe({**PAIR, "models": {**PAIR["models"], "large": large}, "steps": steps}).run(tmp_path / "run")
    models = {each["name"]: each for each in found.results["models"]}
    assert models["teacher"]["parameters"] == sum(each.numel() for each in net.parameters())
    assert models["student"]["fidelity"]["agreement"] >= 0
