"""Several seeds of a run, and what must stay apart: the test split, teacher and student, equal starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from decoct.errors import RecipeError
from decoct.recipe.graph import graph
from decoct.runner.execution import Run
from decoct.runner.keys import derive
from tiny import PAIR, SHIPPED, Watch, recipe, records, tree

STEPS = ["teacher", "student_alone", "student", "student_onnx", "benchmark"]


@pytest.fixture(scope="session")
def three_seeds(tmp_path_factory: pytest.TempPathFactory) -> Run:
    data = {**SHIPPED, "steps": [*PAIR["steps"], {**SHIPPED["steps"][-1], "inputs": {}}]}
    data["steps"][-1]["inputs"] = {name: name for name in ("teacher", "student_alone", "student")}
    return recipe(data).run(tmp_path_factory.mktemp("run") / "seeds", seeds=3)


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
    models = {**PAIR["models"], "taught": {"use": "artifact", "path": str(three_seeds.folder / "01-teacher")}}
    step = {**PAIR["steps"][2], "inputs": {"model": "small", "teacher": "taught"}}
    alone = recipe({**PAIR, "seed": 1, "models": models, "steps": [step]}).run(tmp_path)
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
        data = {**PAIR, "data": {"use": "fashion_mnist", "path": str(path)}, "task": {"use": "image_classification"}}
        data["models"] = {**PAIR["models"], "large": {"use": "mlp", "hidden": [12]}}
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
    data = {**PAIR, "steps": [{**PAIR["steps"][1], "select": "last"}]}
    found = recipe(data).run(tmp_path)
    validated = [each for each in records(tmp_path / "log.jsonl") if each["kind"] == "validation"]
    assert dict(found.artifact("student_alone").scores) == validated[-1]["scores"]


def test_a_default_input_seeds_like_the_same_name_written_out() -> None:
    from decoct.recipe.recipe import Recipe

    plain = recipe().plain(defaults=False)
    more = {"use": "train", "name": "more", "budget": {"steps": 6}}
    left_out = Recipe.parse({**plain, "steps": [*plain["steps"], more]})
    written = Recipe.parse({**plain, "steps": [*plain["steps"], {**more, "inputs": {"model": "student"}}]})
    names = [graph(each, [0])[-1].step.seed_name() for each in (left_out, written)]
    assert names == ["student", "student"]


def test_a_model_that_moved_is_the_same_model(tmp_path: Path) -> None:
    from decoct.models.file import File
    from decoct.models.mlp import MLP
    from decoct.runner.keys import _identity

    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    first.write_bytes(b"weights")
    second.write_bytes(b"weights")
    model = MLP(hidden=(8,))
    assert _identity(File(path=first, model=model)) == _identity(File(path=second, model=model))
    assert _identity(File(path=first, model=model)) != _identity(File(path=first, model=MLP(hidden=(9,))))
    second.write_bytes(b"others")
    assert _identity(File(path=first, model=model)) != _identity(File(path=second, model=model))


def test_an_offline_run_downloads_no_weights_and_leaves_the_environment(tmp_path: Path, monkeypatch) -> None:
    import os

    import torch

    from decoct.errors import DataError

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    weighty = {"use": "torchvision", "name": "resnet18", "weights": "DEFAULT"}
    with pytest.raises(DataError, match=r"not here and could not be downloaded \(no network\)"):
        recipe(models__large=weighty).run(tmp_path / "run", offline=True)
    assert "HF_HUB_OFFLINE" not in os.environ
