"""Training and distilling as steps: labels that must not be seen, equal starts, teachers untouched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from decoct.artifact import Artifact
from decoct.data.base import Dataset
from decoct.data.digits import Digits
from decoct.data.splits import keep_labels
from decoct.errors import DataError, RecipeError
from decoct.models.mlp import MLP
from decoct.models.saving import load_model
from decoct.objectives.cross_entropy import CrossEntropy
from decoct.objectives.hint import Hint
from decoct.objectives.kd import KD
from decoct.outputs import Needs
from decoct.steps.base import Context, Step
from decoct.steps.distill import Distill
from decoct.steps.learning.batches import few, scores
from decoct.steps.train import Train
from decoct.tasks.image_classification import ImageClassification
from decoct.teachers.contract import checksums
from decoct.training.budget import Budget

SMALL, LARGE = MLP(hidden=(8,)), MLP(hidden=(16,))
SHORT: dict[str, Any] = {"budget": Budget(steps=6), "batch_size": 16, "log_every": 1}


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Digits(limit=120).open()


@pytest.fixture(scope="module")
def task(data: Dataset) -> ImageClassification:
    return ImageClassification().resolve(data)


def context(folder: Path, data: Dataset, task: ImageClassification, name: str, **settings: Any) -> Context:
    work = folder / f".{name}.work"
    return Context(task=task, data=data, name=name, folder=folder / name, work=work, seed=3, device="cpu", **settings)


def done(step: Step, inputs: dict[str, Any], *where: Any, **settings: Any) -> Artifact:
    return step.run(inputs, context(*where, step.name, **settings))


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_file(artifact.file("model.safetensors"))


def equal(a: Artifact, b: Artifact) -> bool:
    ours, theirs = weights(a), weights(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def teacher(data: Dataset, task: ImageClassification, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return done(Train(name="teacher", **SHORT), {"model": LARGE}, tmp_path_factory.mktemp("teacher"), data, task)


def with_train(data: Dataset, **changes: Any) -> Dataset:
    return replace(data, splits={**data.splits, "train": replace(data.splits["train"], **changes)})


@pytest.mark.parametrize("use", ["train", "distill", "labelled"])
def test_labels_of_unlabelled_samples_are_never_seen(
    use: str, data: Dataset, task: ImageClassification, teacher: Artifact, tmp_path: Path
) -> None:
    half = with_train(data, labelled=keep_labels(data.splits["train"], 40).labelled)
    split = half.splits["train"]
    assert split.labelled is not None
    label = np.asarray(split.columns["label"])
    wrong = np.where(split.labelled, label, (label + 1 + np.arange(len(label)) % 9) % 10)
    assert (wrong != label).sum() == 80
    poisoned = with_train(half, columns={**split.columns, "label": wrong})
    found = []
    for name, each in (("plain", half), ("poisoned", poisoned)):
        if use == "train":
            found.append(done(Train(name="s", **SHORT), {"model": SMALL}, tmp_path / name, each, task))
        else:
            step = Distill(name="s", samples="all" if use == "distill" else "labelled", **SHORT)
            found.append(done(step, {"model": SMALL, "teacher": teacher}, tmp_path / name, each, task))
    assert equal(*found)
    labelled = np.where(split.labelled, (label + 1) % 10, label)
    seen = with_train(half, columns={**split.columns, "label": labelled})
    step = Train(name="s", **SHORT) if use == "train" else Distill(name="s", **SHORT)
    inputs = {"model": SMALL} if use == "train" else {"model": SMALL, "teacher": teacher}
    assert not equal(found[0], done(step, inputs, tmp_path / "seen", seen, task))


def test_labels_of_a_step_are_those_that_the_data_would_keep(
    data: Dataset, task: ImageClassification, teacher: Artifact, tmp_path: Path
) -> None:
    fewer = with_train(data, labelled=keep_labels(data.splits["train"], 30).labelled)
    for step, inputs in (
        (Train(name="t", **SHORT), {"model": SMALL}),
        (Distill(name="d", **SHORT), {"model": SMALL, "teacher": teacher}),
    ):
        by_step = done(step.replace(labels=30), inputs, tmp_path / f"step-{step.name}", data, task)
        by_data = done(step, inputs, tmp_path / f"data-{step.name}", fewer, task)
        assert equal(by_step, by_data)
        assert not equal(by_step, done(step, inputs, tmp_path / f"all-{step.name}", data, task))
    with pytest.raises(RecipeError, match=r"labels: 500 asked for, 120 .* labelled"):
        done(Train(name="x", labels=500), {"model": SMALL}, tmp_path, data, task)
    assert not (tmp_path / "x").exists()


def test_unlabelled_samples_teach_through_the_teacher_alone(
    data: Dataset, task: ImageClassification, teacher: Artifact, tmp_path: Path
) -> None:
    none = with_train(data, labelled=np.zeros(120, bool))
    objective = 0.9 * KD(temperature=4.0) + 0.1 * CrossEntropy()
    both = done(
        Distill(name="both", objective=objective, **SHORT), {"model": SMALL, "teacher": teacher}, tmp_path, none, task
    )
    distilled = done(
        Distill(name="taught", objective=0.9 * KD(temperature=4.0), **SHORT),
        {"model": SMALL, "teacher": teacher},
        tmp_path,
        none,
        task,
    )
    assert equal(both, distilled)
    with pytest.raises(DataError, match="labelled of 120"):
        done(Train(name="alone", **SHORT), {"model": SMALL}, tmp_path, none, task)


def test_a_step_by_hand_gives_the_same_weights(data: Dataset, task: ImageClassification, tmp_path: Path) -> None:
    """Six steps of AdamW on cross-entropy, written out, in the order that the seed and the keys give."""
    from decoct.data.hashing import keyed
    from decoct.steps.learning.building import seed_everything
    from decoct.steps.learning.settings import DEFAULT_OPTIMIZER
    from decoct.training.clock import Clock
    from decoct.training.schedules import at

    found = done(Train(name="s", select="last", **SHORT), {"model": SMALL}, tmp_path, data, task)
    seed_everything(3)
    model = SMALL.build(task.reading("student").interface)
    split = data.splits["train"]
    assert len(np.unique(split.keys)) == 120
    order = np.argsort(keyed(3, "order", 0, split.keys, np.zeros(120, np.int64)), kind="stable")
    matrices, biases = ([each for each in model.parameters() if each.ndim == n] for n in (2, 1))
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.01}, {"params": biases, "weight_decay": 0.0}])
    images = torch.from_numpy(split.columns["image"]).permute(0, 3, 1, 2)
    for step in range(6):
        rows = order[step * 16 : step * 16 + 16]
        for group in optimizer.param_groups:
            group["lr"] = at(DEFAULT_OPTIMIZER.lr, Clock(step, 0, step / 6))
        pixels = (images[rows].float() / 255 - task.mean[0]) / task.std[0]
        loss = torch.nn.functional.cross_entropy(model(pixels), torch.from_numpy(split.columns["label"][rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, value in weights(found).items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-6, atol=1e-8)


def test_the_teacher_is_as_before_and_hooks_are_gone(
    data: Dataset, task: ImageClassification, teacher: Artifact, tmp_path: Path
) -> None:
    from decoct.models.given import given_model

    module = load_model(teacher).module.train()
    before = checksums(module)
    flags = [each.requires_grad for each in module.parameters()]
    objective = KD() + Hint(layers={"0": "0"}) if "0" in dict(module.named_modules()) else KD()
    step = Distill(name="s", objective=objective, **SHORT)
    inputs = {"model": SMALL, "teacher": given_model("big", module)}
    done(step, inputs, tmp_path, data, task, given={"big": module})
    assert checksums(module) == before
    assert [each.requires_grad for each in module.parameters()] == flags
    assert all(each.training for each in module.modules())
    assert not any(each._forward_hooks for each in module.modules())


def test_training_on_keeps_the_structure_and_starts_from_the_weights(
    data: Dataset, task: ImageClassification, teacher: Artifact, tmp_path: Path
) -> None:
    settings = {**SHORT, "budget": Budget(steps=0), "select": "last"}
    more = done(Train(name="more", **settings), {"model": teacher}, tmp_path, data, task)
    assert equal(more, teacher)
    assert more.json("model.json")["base"] == teacher.json("model.json")["base"]


def test_the_kept_weights_are_those_of_the_best_validation(
    data: Dataset, task: ImageClassification, tmp_path: Path
) -> None:
    made = done(
        Train(name="s", budget=Budget(epochs=4), batch_size=16, optimizer={"use": "sgd", "lr": 3.0}),
        {"model": SMALL},
        tmp_path,
        data,
        task,
    )
    model = load_model(made)

    def predict(batch: Any) -> Any:
        return task.forward(model, batch, Needs(), "student")

    again = scores(predict, context(tmp_path, data, task, "s"), "validation")
    assert again["accuracy"] == made.scores["accuracy"]
    assert made.json("history.json")["steps"] == 32


def test_without_a_validation_split_the_last_weights_stay(
    data: Dataset, task: ImageClassification, tmp_path: Path
) -> None:
    bare = replace(data, splits={"train": data.splits["train"]})
    with pytest.warns(UserWarning, match=r"no validation split, so the last weights are kept; give data\.validation"):
        made = done(Train(name="s", **SHORT), {"model": SMALL}, tmp_path, bare, task)
    assert dict(made.scores) == {}
    last = done(Train(name="last", select="last", **SHORT), {"model": SMALL}, tmp_path, data, task)
    assert equal(made, last)


def test_the_first_samples_are_drawn_without_disorder(data: Dataset, task: ImageClassification, tmp_path: Path) -> None:
    where = context(tmp_path, data, task, "s")
    state = torch.get_rng_state()
    batch = few(where, 4)
    assert torch.equal(state, torch.get_rng_state())
    assert len(batch) == 4
    assert batch.target.tolist() == data.splits["train"].columns["label"][:4].tolist()
    with pytest.raises(DataError, match="did you mean train"):
        few(where, 4, "trian")


def test_labels_of_a_step_are_refused_for_regression(data: Dataset, tmp_path: Path) -> None:
    from decoct.tasks.regression import Regression

    with pytest.raises(RecipeError, match=r"regression.*give data\.labels: 30"):
        done(Train(name="s", labels=30, **SHORT), {"model": SMALL}, tmp_path, data, Regression())


def test_labels_of_an_estimator_are_refused_for_regression(data: Dataset, tmp_path: Path) -> None:
    from decoct.steps.train_estimator import TrainEstimator
    from decoct.tasks.regression import Regression

    step = TrainEstimator(name="e", estimator={"use": "extra_trees"}, labels=30)
    with pytest.raises(RecipeError, match=r"regression.*give data\.labels: 30"):
        done(step, {}, tmp_path, data, Regression())
