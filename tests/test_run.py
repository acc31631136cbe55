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

from decoct.artifact import Artifact, damaged, read_manifest
from decoct.errors import IntegrityError, RecipeError, ResourceError
from decoct.recipe import Recipe
from decoct.run import Run, derive, graph, lock, plan
from decoct.spec import Choice
from decoct.verify import verify_run
from tiny import SHIPPED, TAUGHT, Watch, recipe, records, timeless, tree

STEPS = ["teacher", "student_alone", "student", "student_onnx", "benchmark"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return recipe(SHIPPED).run(tmp_path_factory.mktemp("run") / "tiny")


@pytest.fixture
def copied(finished: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.folder, tmp_path / "run"))


@pytest.fixture(scope="session")
def three_seeds(tmp_path_factory: pytest.TempPathFactory) -> Run:
    data = {**SHIPPED, "steps": [*TAUGHT["steps"], {**SHIPPED["steps"][-1], "inputs": {}}]}
    data["steps"][-1]["inputs"] = {name: name for name in ("teacher", "student_alone", "student")}
    return recipe(data).run(tmp_path_factory.mktemp("run") / "seeds", seeds=3)


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
    assert top == {"recipe.yaml", "results.json", "report.html", "model_card.md", "log.jsonl", ".lock"} | folders
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
    assert Recipe.parse(results["recipe"]) == finished.recipe
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


def test_the_recipe_in_the_folder_is_the_recipe(finished: Run) -> None:
    assert Recipe.load(finished.folder / "recipe.yaml") == finished.recipe


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
    planned = plan(recipe(SHIPPED, data__limit=190), copied)
    assert not any(each.skip for each in planned)
    assert again(copied, data__limit=190).steps("started") == STEPS


def test_a_precision_for_all_steps_is_part_of_what_they_are(tmp_path: Path) -> None:
    data = {**TAUGHT, "steps": [TAUGHT["steps"][1], {**TAUGHT["steps"][1], "name": "plain", "precision": "no"}]}
    recipe(data).run(tmp_path)
    planned = plan(recipe(data), tmp_path, precision="bf16")
    assert [each.skip for each in planned] == [False, True]


def test_another_machine_measures_again_and_learns_nothing_anew(copied: Path) -> None:
    from decoct.run import Execution, Options, prepare

    made = recipe(SHIPPED)
    keys = {}
    for node in graph(made, [0]):
        execution = Execution(made, copied, *prepare(made, Options()), Options())
        execution.artifacts = {each.name: Artifact.load(each) for each in copied.iterdir() if each.is_dir()}
        keys[node.step.name] = execution.key(node)
        assert keys[node.step.name] == read_manifest(copied / node.folder)["key"]
    assert {step.use: step.machine_bound for step in made.steps} == {
        "train": False,
        "distill": False,
        "export": False,
        "benchmark": True,
    }


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
    from decoct.artifact import MANIFEST, SEAL, _checksums, _seal

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
        watch = again(tmp_path, TAUGHT)
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
        again(tmp_path, TAUGHT, **changes)
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
        "import sys, time; from pathlib import Path; from decoct.run import lock\n"
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


# Seeds.


def test_seeds_repeat_what_learns_below_the_teacher(three_seeds: Run) -> None:
    found = {path.name for path in three_seeds.folder.iterdir() if path.is_dir()}
    learned = {f"{name}{end}" for name in ("02-student_alone", "03-student") for end in ("", ".seed-1", ".seed-2")}
    assert found == {"01-teacher", "04-benchmark"} | learned
    assert three_seeds.results["seeds"] == [0, 1, 2]
    assert len({tree(path)["model.safetensors"] for path in _students(three_seeds)}) == 3


def _students(run: Run) -> list[Path]:
    return [run.artifact("student", seed).folder for seed in (0, 1, 2)]


def test_an_artifact_is_found_by_its_seed(three_seeds: Run) -> None:
    assert [path.name for path in _students(three_seeds)] == ["03-student", "03-student.seed-1", "03-student.seed-2"]
    assert three_seeds.artifact("student").meta["seed"] == 0
    assert three_seeds.artifact("student", 2).meta["seed"] == 2
    for wrong in (("student", 3), ("teacher", 1)):
        with pytest.raises(RecipeError, match="no artifact of step"):
            three_seeds.artifact(*wrong)
    with pytest.raises(RecipeError, match="did you mean student"):
        three_seeds.artifact("studnt")


def test_a_seed_of_several_is_that_seed_alone(three_seeds: Run, tmp_path: Path) -> None:
    """The second seed equals a run of its own under that seed with the same teacher."""
    models = {**TAUGHT["models"], "taught": {"use": "artifact", "path": str(three_seeds.folder / "01-teacher")}}
    step = {**TAUGHT["steps"][2], "inputs": {"model": "small", "teacher": "taught"}}
    alone = recipe({**TAUGHT, "seed": 1, "models": models, "steps": [step]}).run(tmp_path)
    made = load_file(alone.artifact("student").folder / "model.safetensors")
    wanted = load_file(three_seeds.artifact("student", 1).folder / "model.safetensors")
    assert all(torch.equal(made[name], wanted[name]) for name in wanted)


def test_means_deviations_and_the_paired_interval(three_seeds: Run) -> None:
    from scipy import stats

    models = {each["name"]: each for each in three_seeds.results["models"]}
    for name, seeds in (("teacher", [0]), ("student", [0, 1, 2]), ("student_alone", [0, 1, 2])):
        found = [each["quality"]["accuracy"] for each in models[name]["per_seed"]]
        assert models[name]["seeds"] == seeds
        assert models[name]["quality"]["accuracy"] == pytest.approx(np.mean(found), rel=1e-12)
        if len(seeds) > 1:
            assert models[name]["quality_sd"]["accuracy"] == pytest.approx(np.std(found, ddof=1), rel=1e-12)
    ours, theirs = (
        np.array([each["quality"]["accuracy"] for each in models[name]["per_seed"]])
        for name in ("student", "student_alone")
    )
    [comparison] = three_seeds.results["comparisons"]
    interval = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert comparison["mean"] == pytest.approx((ours - theirs).mean(), abs=1e-12)
    assert (comparison["low"], comparison["high"]) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert comparison["differences"] == pytest.approx((ours - theirs).tolist())


def test_fewer_or_more_seeds_make_only_what_is_not_there(three_seeds: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(three_seeds.folder, tmp_path / "run"))
    watch = Watch()
    three_seeds.recipe.run(folder, watch=watch, seeds=2)
    assert watch.steps("started") == ["benchmark"]
    assert json.loads((folder / "results.json").read_text())["seeds"] == [0, 1]
    watch = Watch()
    three_seeds.recipe.run(folder, watch=watch, seeds=3, seeds_all=True)
    made = [(each["step"], each["seed"]) for each in watch.events if each["event"] == "started"]
    assert ("teacher", 1) in made
    assert ("teacher", 2) in made
    assert ("student", 1) in made
    assert ("student", 0) not in made
    with pytest.raises(RecipeError, match="seeds is 0"):
        three_seeds.recipe.run(folder, seeds=0)


def test_the_graph_under_seeds() -> None:
    made = recipe(SHIPPED)
    once = [(node.folder, dict(node.inputs)) for node in graph(made, [0])]
    assert [folder for folder, _ in once] == [f"{number:02d}-{name}" for number, name in enumerate(STEPS, 1)]
    every = {node.folder: node for node in graph(made, [0, 1])}
    assert every["04-student_onnx.seed-1"].inputs == {"model": ("03-student.seed-1",)}
    assert every["03-student.seed-1"].inputs == {"model": ("small",), "teacher": ("01-teacher",)}
    assert every["05-benchmark"].inputs["student"] == ("04-student_onnx", "04-student_onnx.seed-1")
    assert "01-teacher.seed-1" not in every
    all_of_it = {node.folder: node for node in graph(made, [0, 1], seeds_all=True)}
    assert all_of_it["03-student.seed-1"].inputs["teacher"] == ("01-teacher.seed-1",)


def test_seeds_of_steps_are_derived_from_run_and_model() -> None:
    found = {derive(seed, name) for seed in range(50) for name in ("small", "large")}
    assert len(found) == 100
    assert all(0 <= each < 2**31 for each in found)
    assert derive(0, "small") == derive(0, "small")
    alone, student = recipe().steps[1:]
    assert alone.seed_name() == student.seed_name() == "small"


# What stays apart.


def written_digits(folder: Path, test_images: np.ndarray, test_labels: np.ndarray) -> Path:
    """Digits in the files of Fashion-MNIST, with a test split of one's own."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.repeat(np.repeat(digits.images[:120].astype(np.uint8) * 15, 2, axis=1), 2, axis=2)
    folder.mkdir()
    for name, values in (
        ("train-images-idx3-ubyte", images),
        ("train-labels-idx1-ubyte", digits.target[:120].astype(np.uint8)),
        ("t10k-images-idx3-ubyte", test_images),
        ("t10k-labels-idx1-ubyte", test_labels),
    ):
        head = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
        (folder / name).write_bytes(head + values.tobytes())
    return folder


def test_nothing_learns_from_the_test_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    runs = []
    for name, scale in (("plain", 1), ("poisoned", 255)):
        images = (rng.random((30, 16, 16)) * scale).astype(np.uint8)
        path = written_digits(tmp_path / name, images, rng.integers(0, 10, 30).astype(np.uint8))
        data = {**TAUGHT, "data": {"use": "fashion_mnist", "path": str(path)}, "task": {"use": "image_classification"}}
        data["models"] = {**TAUGHT["models"], "large": {"use": "mlp", "hidden": [12]}}
        runs.append(recipe(data).run(tmp_path / f"run-{name}"))
    assert runs[0].results["data"] != runs[1].results["data"]
    for step in ("teacher", "student_alone", "student"):
        ours, theirs = (tree(run.artifact(step).folder) for run in runs)
        for name in ("model.safetensors", "task.json", "scores.json", "history.json"):
            assert ours[name] == theirs[name], f"{step}: {name} hangs on the test split"


def test_a_distilled_student_under_the_task_loss_alone_is_the_student_alone(tmp_path: Path) -> None:
    """Same model, same seed, same order: what a teacher adds is its term alone."""
    found = recipe(steps__2__objective=[{"use": "task_loss"}]).run(tmp_path)
    alone, student = (tree(found.artifact(step).folder)["model.safetensors"] for step in ("student_alone", "student"))
    assert alone == student


def test_last_weights_have_scores_too(tmp_path: Path) -> None:
    data = {**TAUGHT, "steps": [{**TAUGHT["steps"][1], "select": "last"}]}
    found = recipe(data).run(tmp_path)
    validated = [each for each in records(tmp_path / "log.jsonl") if each["kind"] == "validation"]
    assert dict(found.artifact("student_alone").scores) == validated[-1]["scores"]


def test_damage_in_an_artifact_from_elsewhere_stops_the_run(copied: Path, tmp_path: Path) -> None:
    models = {**TAUGHT["models"], "taught": {"use": "artifact", "path": str(copied / "01-teacher")}}
    data = {**TAUGHT, "models": models, "steps": [dict(TAUGHT["steps"][2])]}
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
