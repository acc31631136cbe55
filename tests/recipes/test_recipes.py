"""Every shipped recipe runs, made small, on the data that it names."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import decoct
from decoct.cli import app as cli
from decoct.recipe.file import as_python, read
from decoct.recipe.recipe import Recipe
from decoct.runner.checking import check

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.rglob("*.yaml"))
PLACES = {
    "fashion_mnist": "fashion-mnist",
    "sst2": "sst2",
    "cifar10": "cifar10-subset",
    "credit_default": "credit-default",
    "california_housing": "california-housing",
    "conll": "wnut17",
    "image_masks": "camvid",
    "voc": "bccd/BCCD",
    "mnist": "mnist",
    "text": "tinyshakespeare/input.txt",
}
TINY_MODELS: dict[str, dict[str, Any]] = {
    "small_resnet": {"width": 4},
    "small_unet": {"widths": [4, 6]},
    "small_detector": {"widths": [4, 6, 8], "head": 8},
    "faster_rcnn": {"widths": [4, 6, 8], "features": 8, "hidden": 16},
    "small_gpt": {"width": 16, "depth": 1, "heads": 2},
    "small_mobilenet": {"width": 4},
    "mlp": {"hidden": [4]},
    "bilstm": {"embedding": 8, "hidden": 8},
    "transformers": {
        "config": {
            "model_type": "bert",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        }
    },
}
LIMITS = {
    "image_classification": 80,
    "text_classification": 40,
    "token_classification": 40,
    "segmentation": 20,
    "detection": 80,
    "multi_task": 60,
}
"""Samples of each split, where the default of 300 takes long."""
TOKENIZERS = ("tokenizer", "teacher_tokenizer")


def named(path: Path) -> str:
    return path.relative_to(FOLDER).with_suffix("").as_posix()


def shrunk(recipe: Recipe, places: dict[str, Path]) -> list[str]:
    """Overrides that leave the recipe's structure and make it small; `places` of its data sets by their setting."""
    limit = LIMITS.get(recipe.task.use, 300)
    words = [f"{setting}.limit={limit}" for setting in sets_of(recipe)]
    words += [f"{setting}.path={place}" for setting, place in places.items()]
    task = recipe.task.plain(defaults=False)
    if "tokenizer" in task:
        words += [f"task.{name}.size=300" for name in TOKENIZERS if name in task] + ["task.max_length=12"]
    if recipe.task.use == "segmentation":
        words.append("data.size=[24, 32]")
    if recipe.task.use == "detection":
        words.append("data.size=[48, 64]")
    for name, model in recipe.models.items():
        words += [f"models.{name}.{key}={json.dumps(value)}" for key, value in TINY_MODELS.get(model.use, {}).items()]
    for step in recipe.steps:
        fields = type(step).model_fields
        if "budget" in fields:
            words += [f"steps.{step.name}.budget={{steps: 3}}", f"steps.{step.name}.batch_size=16"]
        if "labels" in fields and step.plain()["labels"] is not None:
            words.append(f"steps.{step.name}.labels=40")
        if step.use == "benchmark":
            words += [f"steps.{step.name}.{key}" for key in ("repeats=3", "warmup=1", "seconds=0.3")]
        if step.use == "train_estimator":
            words += [f"steps.{step.name}.estimator.{size}=3" for size in sizes(step.plain()["estimator"])]
    return words


def sets_of(recipe: Recipe) -> dict[str, str]:
    """The data sets of a recipe by their setting, each by its kind."""
    plain = recipe.data.plain()
    if "sets" in plain:
        return {f"data.sets.{name}": each["use"] for name, each in plain["sets"].items()}
    return {"data": recipe.data.use}


def sizes(estimator: dict[str, Any]) -> list[str]:
    """The settings that say how large an estimator is."""
    return [name for name in ("max_iter", "n_estimators") if name in estimator]


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for each in value.values():
            yield from numbers(each)
    elif isinstance(value, list):
        for each in value:
            yield from numbers(each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def places_of(recipe: Recipe, request: pytest.FixtureRequest) -> dict[str, Path]:
    """Where the recipe's data are, by their setting; skips where they are not at hand. Digits are always there."""
    found = {}
    for setting, use in sets_of(recipe).items():
        if use in PLACES:
            found[setting] = request.getfixturevalue("data_root") / PLACES[use]
        else:
            assert use == "digits"
    return found


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_a_shipped_recipe_runs(path: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    whole = Recipe.load(path)
    small = Recipe.load(path, shrunk(whole, places_of(whole, request)))
    assert [(step.name, step.use) for step in small.steps] == [(step.name, step.use) for step in whole.steps]
    run = small.run(tmp_path, offline=True)
    results = json.loads((tmp_path / "results.json").read_text())
    benchmark = next(step for step in small.steps if step.use == "benchmark")
    assert [each["name"] for each in results["models"]] == list(benchmark.inputs)
    assert {"student", "student_alone"} <= set(benchmark.inputs)
    assert all(math.isfinite(each) for each in numbers(results))
    metric = results["task"]["metric"]
    for each in results["models"]:
        assert each["n"] > 0
        assert math.isfinite(each["quality"][metric])
        assert each["file_bytes"] == (tmp_path / each["artifact"]).stat().st_size
        assert each["latency"]["p50_ms"] > 0
    assert results["comparisons"][0]["better"] == "student"
    assert (tmp_path / "report.html").stat().st_size > 100_000
    assert run.artifact("student").kind == "model"


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_a_shipped_recipe_passes_check(path: Path, request: pytest.FixtureRequest) -> None:
    whole = Recipe.load(path)
    small = Recipe.load(path, shrunk(whole, places_of(whole, request)))
    assert [each.step for each in check(small, offline=True)] == [step.name for step in small.steps]


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_the_forms_of_a_shipped_recipe_agree(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Recipe.load(path)
    assert eval(repr(recipe), {name: getattr(decoct, name) for name in decoct.__all__}) == recipe
    for defaults in (True, False):
        assert Recipe.from_marked(read(recipe.yaml(defaults=defaults))) == recipe
        assert Recipe.parse(json.loads(json.dumps(recipe.plain(defaults=defaults)))) == recipe
    assert cli.call(["show", str(path), "--python"]) == 0
    shown = capsys.readouterr().out
    assert shown.strip() == as_python(recipe).strip()
    exec(shown, names := {})
    assert names["recipe"] == recipe
    assert names["recipe"].digest() == recipe.digest()
    assert cli.call(["show", str(path)]) == 0
    assert Recipe.from_marked(read(capsys.readouterr().out)) == recipe


def test_every_shipped_recipe_compares_the_student_with_itself_alone() -> None:
    assert len(RECIPES) >= 6
    for path in RECIPES:
        recipe = Recipe.load(path)
        steps = {step.name: step.plain() for step in recipe.steps}
        alone, student = steps["student_alone"], steps["student"]
        if alone["use"] != "train":  # the first of several models that one step trained
            continue
        for setting in ("budget", "batch_size", "optimizer", "labels", "select", "augment"):
            if setting in student:  # some steps train several models and set this for each
                assert alone[setting] == student[setting], f"{path.name}: {setting}"
        if "model" in student["inputs"]:
            assert alone["inputs"]["model"] == student["inputs"]["model"], path.name
