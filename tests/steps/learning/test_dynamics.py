"""Dynamics in whole steps: the shipped recipe, digests that stay, averaged views, what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from decoct.data.base import Dataset, Split
from decoct.data.digits import Digits
from decoct.errors import RecipeError
from decoct.models.mlp import MLP
from decoct.models.saving import load_model
from decoct.models.small_resnet import SmallResNet
from decoct.outputs import Batch, Needs, Outputs
from decoct.recipe.recipe import Recipe
from decoct.report.charts import training
from decoct.report.colours import Colours
from decoct.report.curves import read_log
from decoct.steps.base import Context
from decoct.steps.distill import Distill
from decoct.steps.learning.batches import class_counts, training_source
from decoct.steps.learning.refusals import refuse_what_cannot_mix
from decoct.steps.learning.teachers import open_teachers
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.inputs.augment import Augment
from decoct.teachers.views import mean_of_views, over_views
from decoct.training.engine import Engine

RECIPE = Path(__file__).parents[3] / "recipes" / "digits_dynamics.yaml"


@pytest.fixture(scope="module")
def data():
    return Digits(limit=200).open()


def context(data, tmp_path, **task):
    problem = ImageClassification(**task).resolve(data)
    return Context(task=problem, data=data, name="s", folder=tmp_path, work=tmp_path, seed=3)


def test_the_shipped_recipe_runs_shrunk(tmp_path):
    small = [
        "data.limit=200",
        "models.large.width=8",
        "models.small.width=4",
        "steps.0.budget.epochs=1",
        "steps.1.budget.steps=4",
        "steps.2.budget.steps=12",
        "steps.2.objective.balance.period=3",
        "steps.2.log_every=1",
    ]
    run = Recipe.load(RECIPE, small).run(tmp_path / "run")
    lines = (run.folder / "log.jsonl").read_text().splitlines()
    records = [each for each in map(json.loads, lines) if each["step"] == "student" and each["kind"] == "train"]
    temperatures = [each["weights"]["kd.temperature"] for each in records]
    assert temperatures[0] == 6.0
    assert temperatures == sorted(temperatures, reverse=True)
    assert len({each["weights"]["kd"] for each in records}) > 4
    titles = [chart.title for chart in training(read_log(run.folder), Colours({}, []))]
    assert {"Weights of student", "Temperature of student"} <= set(titles)
    assert all(np.isfinite(each["loss"]) for each in records)


def test_settings_at_their_default_are_no_part_of_the_data():
    step = Distill(name="a")
    assert not {"mix", "teacher_views"} & set(step.plain())
    assert not {"refine", "balance"} & set(step.plain()["objective"])
    full = Distill.parse({"name": "a", "mix": {"use": "mixup", "alpha": 0.2}, "teacher_views": 3})
    assert Distill.parse(full.plain()) == full
    assert full.plain()["mix"] == {"use": "mixup", "alpha": 0.2, "probability": 1.0}


def test_the_teacher_s_mean_over_views():
    drawn = torch.Generator().manual_seed(0)
    logits = [torch.randn(4, 3, generator=drawn, dtype=torch.float64) * 5 for _ in range(3)]
    p = np.mean([torch.softmax(each, -1).numpy() for each in logits], axis=0)
    np.testing.assert_allclose(mean_of_views(logits).exp().numpy(), p, rtol=1e-12)
    numbers = mean_of_views(logits, numbers=True)
    np.testing.assert_allclose(numbers.numpy(), np.mean([each.numpy() for each in logits], axis=0))

    def predict(batch):
        return Outputs(batch.side("teacher"), features={"f": batch.side("teacher")})

    first, *more = (Batch({"teacher": each}) for each in logits)
    whole = Batch(first.inputs, views=tuple(more))
    outputs = over_views(predict)(whole.to("cpu"))
    np.testing.assert_allclose(outputs.logits.exp().numpy(), p, rtol=1e-12)
    assert torch.equal(outputs.features["f"], logits[0])
    assert torch.equal(over_views(predict)(first).logits, logits[0])


def test_further_views_are_of_the_same_samples_with_other_seeds(data, tmp_path):
    here = context(data, tmp_path, augment=Augment(crop=2))
    settings = {"batch_size": 32, "augment": True, "only": "all", "labels": None}
    plain = list(training_source(here, **settings))
    several = list(training_source(here, **settings, further=3))
    for a, b in zip(plain, several):
        assert torch.equal(a.side("student"), b.side("student"))
        assert len(b.views) == 2
        for view in b.views:
            assert (view.keys == b.keys).all()
            assert not torch.equal(view.side("teacher"), b.side("teacher"))
        assert not torch.equal(b.views[0].side("teacher"), b.views[1].side("teacher"))


def test_counts_are_of_the_labels_that_may_be_used(data, tmp_path):
    here = context(data, tmp_path)
    assert class_counts(here, 20) == (2,) * 10
    assert class_counts(here, None) == tuple(np.bincount(data.splits["train"].columns["label"], minlength=10))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mix": {"use": "mixup"}, "objective": [{"use": "dkd"}]}, "dkd reads one class a sample"),
        ({"teacher_views": 2}, "augments nothing"),
        ({"teacher_views": 2, "augment": False}, "augment"),
    ],
)
def test_what_is_refused(data, tmp_path, settings, words):
    step = Distill.parse({"name": "a", **settings})
    with pytest.raises(RecipeError, match=words):
        refuse_what_cannot_mix(step, step.objective, {}, context(data, tmp_path))


def test_a_balance_by_validation_needs_validation(tmp_path):
    terms = [{"use": "kd"}, {"use": "task_loss"}]
    objective = {"use": "sum", "terms": terms, "balance": {"use": "validation", "patience": 1, "factor": 0.0}}
    recipe = {
        "task": {"use": "image_classification"},
        "data": {"use": "digits", "limit": 100, "validation": 0},
        "models": {"small": {"use": "small_resnet", "width": 2}},
        "steps": [
            {"use": "train", "name": "teacher", "inputs": {"model": "small"}, "budget": {"steps": 2}},
            {
                "use": "distill",
                "name": "student",
                "inputs": {"model": "small", "teacher": "teacher"},
                "objective": objective,
                "budget": {"epochs": 4},
                "batch_size": 50,
                "log_every": 1,
                "optimizer": {"use": "sgd", "lr": 0.0},
            },
        ],
    }
    with pytest.raises(RecipeError, match="no validation split"):
        Recipe.parse(recipe).run(tmp_path / "without")
    recipe["data"]["validation"] = 0.2
    run = Recipe.parse(recipe).run(tmp_path / "with")
    lines = map(json.loads, (run.folder / "log.jsonl").read_text().splitlines())
    weights = [each["weights"]["kd"] for each in lines if each["step"] == "student" and each["kind"] == "train"]
    assert weights[0] == 1.0
    assert weights[-1] == 0.0


def test_a_teacher_is_heard_in_every_view_of_every_sample(data, tmp_path):
    """No two views of a sample are alike, nor are two samples moved alike, and the answer is the mean over all."""
    here = context(data, tmp_path, augment=Augment(crop=2))
    source = training_source(here, batch_size=32, augment=True, only="all", labels=None, further=4)
    batch = next(iter(source))
    shown = [batch, *batch.views]
    pixels = [each.side("teacher") for each in shown]
    alike = [[int((a == b).flatten(1).all(1).sum()) for b in pixels] for a in pixels]
    assert [row[i] for i, row in enumerate(alike)] == [32] * 4
    assert max(max(row[:i] + row[i + 1 :]) for i, row in enumerate(alike)) < 8  # 25 places, some of which look alike
    torch.manual_seed(0)
    spec = SmallResNet(width=4)
    for averaged in (False, True):
        with open_teachers({"teacher": spec}, {"teacher": Needs()}, here, Engine("cpu"), averaged=averaged) as found:
            predict = found.teachers["teacher"]
            outputs = predict(batch).logits.double().softmax(-1).numpy()
            alone = [predict(replace(each, views=())).logits.double().softmax(-1).numpy() for each in shown]
        expected = np.mean(alone, axis=0) if averaged else alone[0]
        np.testing.assert_allclose(outputs, expected, rtol=1e-5)
    assert abs(np.mean(alone, axis=0) - alone[0]).max() > 1e-3


def test_further_views_move_each_sample_by_its_own_number(data, tmp_path):
    """One image many times: in a further view its copies stand at different places."""
    here = context(data, tmp_path, augment=Augment(crop=2))
    split = data.splits["train"]
    columns = {name: np.repeat(values[:1], 64, axis=0) for name, values in split.columns.items()}
    copies = Split(columns, np.arange(64, dtype=np.uint64))
    repeated = Context(
        task=here.task,
        data=Dataset({"train": copies}, "x" * 64, data.classes),
        name="s",
        folder=tmp_path,
        work=tmp_path,
        seed=3,
    )
    source = training_source(repeated, batch_size=64, augment=True, only="all", labels=None, further=2)
    (view,) = next(iter(source)).views
    assert len(view.side("teacher").flatten(1).unique(dim=0)) > 10


def test_a_student_learns_from_the_mean_over_the_views_of_its_step(data, tmp_path):
    """One step of plain descent from equal weights, with one view and with three."""
    models = []
    for views in (1, 3, 3):
        here = context(data, tmp_path / str(len(models)), augment=Augment(crop=2))
        here = replace(here, folder=here.folder / "student", work=here.work / "work")
        fields = {"objective": [{"use": "kd"}], "optimizer": {"use": "sgd", "lr": 0.1}, "budget": {"steps": 1}}
        step = Distill.parse({"name": "s", "batch_size": 16, "teacher_views": views, "select": "last", **fields})
        made = step.run({"model": MLP(hidden=(4,)), "teacher": SmallResNet(width=4)}, here)
        models.append(load_model(made).module.state_dict()["head.weight"])
    assert torch.equal(models[1], models[2])
    assert not torch.equal(models[0], models[1])
