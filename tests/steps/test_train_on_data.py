"""The role `train`: samples that a step made are what the next one trains on, and nothing else changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from decoct.artifact import Artifact, writing
from decoct.data.digits import Digits
from decoct.data.saving import load_data, save_data
from decoct.errors import RecipeError
from decoct.models.mlp import MLP
from decoct.models.saving import load_model
from decoct.outputs import DENSE
from decoct.recipe.recipe import Recipe
from decoct.runner.checking import check
from decoct.runner.keys import derive
from decoct.steps.assistants import Assistants
from decoct.steps.base import Context, Inputs, Step
from decoct.steps.distill import Distill
from decoct.steps.search import Search
from decoct.steps.train import Train
from decoct.steps.train_estimator import TrainEstimator
from decoct.tasks.image_classification import ImageClassification
from decoct.training.budget import Budget
from tiny import Watch

SHORT: dict[str, Any] = {"budget": Budget(steps=5), "batch_size": 8, "log_every": 1, "augment": False}
FIRST = Train(name="teacher", inputs={"model": "small"}, **SHORT)


class Guess(Step):
    """The first samples of the test split, with the classes that the teacher gives them."""

    use: ClassVar[str] = "guess"
    gives: ClassVar[str] = "data"
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {"teacher": ("model",)}
    count: int = 20

    def run(self, inputs: Inputs, context: Context) -> Artifact:
        split = context.data.splits["test"].take(np.arange(self.count))
        batch = context.task.collate(split, np.arange(self.count))
        with torch.no_grad():
            outputs = context.task.reading("student").forward(load_model(inputs["teacher"]), batch, DENSE)
        guessed = replace(split, columns={**split.columns, "label": outputs.logits.argmax(-1).numpy()})
        where = {"name": context.name, "key": context.key, "lineage": context.lineage}
        with writing(context.folder, kind="data", **where) as draft:
            save_data(draft, guessed, classes=context.data.classes)
        return Artifact.load(context.folder)


def made_of(*steps: Step) -> Recipe:
    return Recipe(
        task=ImageClassification(), data=Digits(limit=60), models={"small": MLP(hidden=(8,))}, steps=(FIRST, *steps)
    )


def student(**inputs: str) -> Train:
    return Train(name="student", inputs={"model": "small", **inputs}, **SHORT)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_it_trains_on_what_the_step_made(tmp_path: Path) -> None:
    """As the same step does on a data set that has these samples as its training split."""
    guess = Guess(name="guessed", inputs={"teacher": "teacher"})
    run = made_of(guess, student(train="guessed")).run(tmp_path / "run")
    made = run.artifact("student")
    assert made.lineage["train"][0]["step"] == "guessed"
    data = Digits(limit=60).open()
    task = ImageClassification().resolve(data)
    guessed = load_data(run.artifact("guessed")).splits["train"]
    assert guessed.columns["label"].tolist() != data.splits["test"].columns["label"][:20].tolist()
    alone = Context(
        task=task,
        data=replace(data, splits={**data.splits, "train": guessed}),
        name="alone",
        folder=tmp_path / "alone",
        work=tmp_path / ".work",
        seed=derive(0, "small"),
        device="cpu",
    )
    wanted = student().run({"model": MLP(hidden=(8,))}, alone)
    ours, theirs = weights(made.folder), weights(wanted.folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert made.scores == wanted.scores
    where = {"folder": tmp_path / "plain", "work": tmp_path / ".plain"}
    plain = student().run({"model": MLP(hidden=(8,))}, replace(alone, data=data, **where))
    assert not torch.equal(ours["head.weight"], weights(plain.folder)["head.weight"])


def test_a_key_follows_the_samples(tmp_path: Path) -> None:
    def skipped(count: int, name: str = "guessed") -> list[str]:
        watch = Watch()
        guess = Guess(name=name, inputs={"teacher": "teacher"}, count=count)
        last = Train(name="last", inputs={"model": "small"}, **SHORT)
        made_of(guess, student(train=name), last).run(tmp_path, watch=watch)
        return watch.steps("skipped")

    assert skipped(20) == []
    assert skipped(20) == ["teacher", "guessed", "student", "last"]
    assert skipped(21) == ["teacher", "last"]


def test_steps_with_teachers_and_steps_within_take_it_too(tmp_path: Path) -> None:
    """They do not take it for a teacher."""
    guess = Guess(name="guessed", inputs={"teacher": "teacher"})
    roles = {"model": "small", "teacher": "teacher", "train": "guessed"}
    steps = [
        Distill(name="student", inputs=roles, **SHORT),
        Assistants(name="chain", inputs=roles, assistants=(MLP(hidden=(9,)),), **SHORT),
    ]
    recipe = made_of(guess, *steps)
    assert [each.step for each in check(recipe)] == ["teacher", "guessed", "student", "chain"]
    run = recipe.run(tmp_path / "run")
    plain = made_of(*[each.replace(inputs={"model": "small", "teacher": "teacher"}) for each in steps])
    other = plain.run(tmp_path / "plain")
    for name in ("student", "chain"):
        ours, theirs = weights(run.artifact(name).folder), weights(other.artifact(name).folder)
        assert ours.keys() == theirs.keys()
        assert not torch.equal(ours["head.weight"], theirs["head.weight"])


def test_what_is_no_data_is_refused() -> None:
    with pytest.raises(RecipeError, match="'teacher' is of kind model; train takes data"):
        made_of(student(train="teacher"))
    with pytest.raises(RecipeError, match="model takes spec or model"):
        made_of(Guess(name="guessed", inputs={"teacher": "teacher"}), student(model="guessed"))
    assert all("train" in each.optional for each in (Train, Distill, Assistants, Search, TrainEstimator))
