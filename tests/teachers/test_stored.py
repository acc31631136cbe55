"""A store as a teacher: training from it is training with the teacher, and what does not fit is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
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
from decoct.models.small_resnet import SmallResNet
from decoct.models.stored import Stored
from decoct.objectives.cross_entropy import CrossEntropy
from decoct.objectives.hint import Hint
from decoct.objectives.kd import KD
from decoct.objectives.regression_kd import RegressionKD
from decoct.outputs import Needs
from decoct.steps.base import Context, Step
from decoct.steps.distill import Distill
from decoct.steps.labelling.step import Label
from decoct.steps.train import Train
from decoct.store.codecs.dense import DenseCodec
from decoct.store.codecs.top_k import TopKCodec
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.inputs.augment import Augment
from decoct.tasks.mixing.cutmix import CutMix
from decoct.tasks.mixing.mixup import Mixup
from decoct.teachers.stored import StoredTeacher
from decoct.training.budget import Budget

EXACT = DenseCodec(dtype="float32")
STUDENT = MLP(hidden=(12,))
LEARN: dict[str, Any] = {"budget": Budget(epochs=3), "batch_size": 16, "log_every": 4}
SOFT = 0.7 * KD(temperature=4.0) + 0.3 * CrossEntropy()


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Digits(limit=96).open()


@pytest.fixture(scope="module")
def task(data: Dataset) -> ImageClassification:
    return ImageClassification(augment=Augment(crop=1, flip=True)).resolve(data)


def done(step: Step, inputs: dict[str, Any], folder: Path, data: Dataset, task: Any, **settings: Any) -> Artifact:
    at = Context(
        task=task,
        data=data,
        name=step.name,
        folder=folder / step.name,
        work=folder / f".{step.name}.work",
        seed=3,
        device="cpu",
        **settings,
    )
    made = step.run(inputs, at)
    shutil.rmtree(at.work, ignore_errors=True)
    return made


@pytest.fixture(scope="module")
def teacher(data: Dataset, task: ImageClassification, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("teacher")
    return done(Train(name="teacher", **LEARN), {"model": SmallResNet(width=4)}, folder, data, task)


@pytest.fixture(scope="module")
def labels(
    data: Dataset, task: ImageClassification, teacher: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    step = Label(name="labels", keep=EXACT, views=2, batch_size=37, shard=50)
    return done(step, {"teacher": teacher}, tmp_path_factory.mktemp("labels"), data, task)


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_file(artifact.file("model.safetensors"))


def equal(a: Artifact, b: Artifact) -> bool:
    ours, theirs = weights(a), weights(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def fewer_labels(data: Dataset, count: int) -> Dataset:
    return replace(data, splits={**data.splits, "train": keep_labels(data.splits["train"], count)})


def first(data: Dataset, count: int) -> Dataset:
    split = data.splits["train"]
    return replace(data, splits={**data.splits, "train": split.take(np.arange(count)[::-1])})


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[Dataset], Dataset]]] = {
    "augmented": ({"views": 3}, {"views": 3}, lambda data: data),
    "one view of eight": ({}, {"views": 8}, lambda data: data),
    "other seed of views": ({"views": {"count": 2, "seed": 9}}, {"views": {"count": 2, "seed": 9}}, lambda data: data),
    "plain": ({"augment": False}, {"augment": False}, lambda data: data),
    "mixup": ({"views": 3, "mix": Mixup(alpha=0.4)}, {"views": 3, "mix": Mixup(alpha=0.4)}, lambda data: data),
    "cutmix without augmentation": (
        {"views": 2, "mix": CutMix(), "augment": False},
        {"views": 2, "mix": CutMix(), "augment": False},
        lambda data: data,
    ),
    "accumulated": ({"views": 2}, {"views": 2, "accumulate": 2, "batch_size": 11}, lambda data: data),
    "labels of the step": ({"views": 2}, {"views": 2, "labels": 30}, lambda data: data),
    "labels with mixup": (
        {"views": 2, "mix": Mixup(), "labels": 30},
        {"views": 2, "mix": Mixup(), "labels": 30},
        lambda data: data,
    ),
    "labelled samples alone": ({"views": 2}, {"views": 2, "labels": 30, "samples": "labelled"}, lambda data: data),
    "a part of the data": ({"views": 2}, {"views": 2}, lambda data: first(data, 41)),
    "fewer labels in the data": ({"views": 2}, {"views": 2}, lambda data: fewer_labels(data, 20)),
}


@pytest.mark.parametrize("case", CASES)
def test_training_from_a_store_is_training_with_the_teacher(
    case: str, data: Dataset, task: ImageClassification, teacher: Artifact, tmp_path: Path
) -> None:
    """Every weight bit for bit after several epochs."""
    labelled, learned, part = CASES[case]
    store = done(
        Label(name="labels", keep=EXACT, batch_size=37, shard=50, **labelled),
        {"teacher": teacher},
        tmp_path,
        data,
        task,
    )
    step = Distill(name="live", objective=SOFT, **{**LEARN, **learned})
    live = done(step, {"model": STUDENT, "teacher": teacher}, tmp_path, part(data), task)
    named = {name: value for name, value in learned.items() if name != "views"}
    stored = Distill(name="stored", objective=SOFT, **{**LEARN, **named})
    found = done(stored, {"model": STUDENT, "teacher": store}, tmp_path, part(data), task)
    assert equal(live, found)
    alone = done(
        step.replace(name="alone", objective=CrossEntropy()),
        {"model": STUDENT, "teacher": teacher},
        tmp_path,
        part(data),
        task,
    )
    assert not equal(live, alone)


def test_hints_from_a_store(data: Dataset, task: ImageClassification, teacher: Artifact, tmp_path: Path) -> None:
    step = Label(name="labels", keep=EXACT, views=2, features=("stem.0",), features_dtype="float32", batch_size=20)
    store = done(step, {"teacher": teacher}, tmp_path, data, task)
    objective = SOFT + 0.5 * Hint(layers={"stem.0": "stem.0"})
    student = SmallResNet(width=2)
    distill = Distill(name="live", objective=objective, views=2, **LEARN)
    live = done(distill, {"model": student, "teacher": teacher}, tmp_path, data, task)
    stored = done(distill.replace(name="stored"), {"model": student, "teacher": store}, tmp_path, data, task)
    assert equal(live, stored)


@pytest.mark.parametrize("keep", [DenseCodec(), DenseCodec(dtype="uint8"), TopKCodec(6), TopKCodec(6, tail="uniform")])
def test_training_from_a_compressed_store_comes_close(
    keep: Any, data: Dataset, task: ImageClassification, teacher: Artifact, tmp_path: Path
) -> None:
    store = done(Label(name="labels", keep=keep, views=2), {"teacher": teacher}, tmp_path, data, task)
    step = Distill(name="live", objective=KD(temperature=1.0), views=2, **LEARN)
    live, found, alone = (
        done(each, {"model": STUDENT, "teacher": value}, tmp_path, data, task)
        for each, value in (
            (step, teacher),
            (step.replace(name="stored"), store),
            (step.replace(name="alone", objective=CrossEntropy()), teacher),
        )
    )

    def distance(a: Artifact, b: Artifact) -> float:
        ours, theirs = weights(a), weights(b)
        return sum(float((ours[name] - theirs[name]).square().sum()) for name in ours) ** 0.5

    assert 0 < distance(live, found) < 0.5 * distance(live, alone)


def test_texts_and_numbers_from_a_store(tmp_path: Path) -> None:
    from decoct.data.base import Split
    from decoct.data.hashing import text_keys
    from decoct.models.bilstm import BiLSTM
    from decoct.tasks.regression import Regression
    from decoct.tasks.text_classification import TextClassification

    drawn = np.random.default_rng(0)
    lines = [" ".join(drawn.choice(["good", "bad", "film"], drawn.integers(1, 9))) + f" {i}" for i in range(40)]
    label = np.arange(40) % 2
    words = Dataset({"train": Split({"text": lines, "label": label}, text_keys(lines))}, "t", ("no", "yes"))
    rows = drawn.normal(size=(40, 3)).astype(np.float32)
    table = Split({"features": rows, "value": rows.sum(1) * 3}, drawn.integers(0, 2**60, 40).astype(np.uint64))
    numbers = Dataset({"train": table}, "n", (), ("a", "b", "c"))
    for name, found, problem, large, small in (
        ("text", words, TextClassification(), BiLSTM(embedding=6, hidden=6), BiLSTM(embedding=4, hidden=4)),
        ("numbers", numbers, Regression(), MLP(hidden=(8,)), MLP(hidden=(4,))),
    ):
        resolved, folder = problem.resolve(found), tmp_path / name
        settings = {**LEARN, "select": "last"}
        objective = KD() if name == "text" else RegressionKD()
        teacher = done(Train(name="teacher", **settings), {"model": large}, folder, found, resolved)
        store = done(Label(name="labels", keep=EXACT), {"teacher": teacher}, folder, found, resolved)
        steps = [Distill(name=each, objective=objective, **settings) for each in ("live", "stored")]
        live, stored = (
            done(step, {"model": small, "teacher": value}, folder, found, resolved)
            for step, value in zip(steps, (teacher, store))
        )
        ours, theirs = weights(live), weights(stored)
        for key in ours:
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-4, atol=1e-5)


class Stop(Exception):
    """A run that ends in the middle."""


def test_a_training_that_was_stopped_goes_on_bit_for_bit(
    data: Dataset, task: ImageClassification, teacher: Artifact, labels: Artifact, tmp_path: Path
) -> None:
    step = Distill(name="s", objective=SOFT, **{**LEARN, "checkpoint_seconds": 1e-6})
    inputs = {"model": STUDENT, "teacher": labels}
    whole = done(step, inputs, tmp_path / "whole", data, task)

    def stop(done_: float, total: float, text: str) -> None:
        if done_ >= 7:
            raise Stop

    with pytest.raises(Stop):
        done(step, inputs, tmp_path / "cut", data, task, progress=stop)
    assert list((tmp_path / "cut/.s.work").glob("checkpoint-*"))
    assert equal(done(step, inputs, tmp_path / "cut", data, task), whole)
    live = done(step.replace(views=2), {"model": STUDENT, "teacher": teacher}, tmp_path / "live", data, task)
    assert equal(whole, live)


# Classes by name.


@pytest.mark.parametrize("order", ["permuted", "fewer"])
def test_classes_of_a_store_are_met_by_name(
    order: str, data: Dataset, task: ImageClassification, teacher: Artifact, labels: Artifact, tmp_path: Path
) -> None:
    split = data.splits["train"]
    if order == "permuted":
        names = task.classes[::-1]
        rows, old = np.arange(len(split)), split.columns["label"]
    else:
        names = ("7", "3", "1")
        rows = np.flatnonzero(np.isin(split.columns["label"], [7, 3, 1]))
        old = split.columns["label"][rows]
    taken = split.take(rows)
    new = np.array([names.index(str(each)) for each in old])
    other = replace(
        data, splits={"train": replace(taken, columns={**taken.columns, "label": new})}, classes=names, fingerprint="o"
    )
    problem = task.replace(classes=names)
    step = Distill(name="live", objective=SOFT, views=2, select="last", **LEARN)
    live = done(step, {"model": STUDENT, "teacher": teacher}, tmp_path, other, problem)
    stored = done(step.replace(name="stored"), {"model": STUDENT, "teacher": labels}, tmp_path, other, problem)
    assert equal(live, stored)
    renamed = problem.replace(classes=tuple(f"x{each}" for each in names))
    with pytest.raises(RecipeError, match=r"teacher: it knows the classes .*; they share none, and two are needed"):
        done(step.replace(name="no"), {"model": STUDENT, "teacher": labels}, tmp_path, other, renamed)


def test_top_k_cannot_lose_classes(data: Dataset, task: ImageClassification, teacher: Artifact, tmp_path: Path) -> None:
    store = done(Label(name="labels", keep=TopKCodec(3), views=2), {"teacher": teacher}, tmp_path, data, task)
    split = data.splits["train"]
    rows = np.flatnonzero(split.columns["label"] < 4)
    other = replace(data, splits={"train": split.take(rows)}, classes=task.classes[:4])
    step = Distill(name="s", select="last", **LEARN)
    with pytest.raises(RecipeError, match="the teacher keeps only the 3 largest of 10 probabilities"):
        done(step, {"model": STUDENT, "teacher": store}, tmp_path, other, task.replace(classes=task.classes[:4]))


# What does not fit.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": 3}, r"views is 3 \(seed 0\), and the store 'teacher' holds 2 \(seed 0\); leave views out"),
        ({"views": {"count": 2, "seed": 4}}, r"views is 2 \(seed 4\), and the store 'teacher' holds 2 \(seed 0\)"),
        ({"augment": False}, r"augment is false, and the store 'teacher' was labelled with augment: true; set it to"),
        ({"mix": Mixup(alpha=0.5)}, r"mix is .*alpha 0.5.*, and the store 'teacher' was labelled with none"),
        ({"teacher_views": 2}, r"teacher_views is 2, and teacher is a store, which answers about the view"),
        (
            {"objective": KD() + Hint(layers={"0": "stem.0"})},
            r"asks the stored teacher for the feature 'stem.0'; the store keeps no features; name the layers",
        ),
        (
            {"objective": KD() + Hint(layers="auto")},
            r"asks the stored teacher for layers: auto, which looks at every layer; the store keeps no features",
        ),
    ],
)
def test_settings_that_do_not_fit_a_store(
    settings: dict[str, Any], message: str, data: Dataset, task: ImageClassification, labels: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        done(Distill(name="s", **{**LEARN, **settings}), {"model": STUDENT, "teacher": labels}, tmp_path, data, task)
    assert not (tmp_path / "s").exists()


def test_another_augmentation_or_mixture_than_labelled(
    data: Dataset, task: ImageClassification, teacher: Artifact, labels: Artifact, tmp_path: Path
) -> None:
    step = Distill(name="s", **LEARN)
    for other, text in ((Augment(crop=2, flip=True), "crop 2"), (Augment(), "none")):
        with pytest.raises(RecipeError, match=rf"task.augment is .*{text}.*, and the store 'teacher' was .* crop 1"):
            done(step, {"model": STUDENT, "teacher": labels}, tmp_path, data, task.replace(augment=other))
    mixed = done(Label(name="mixed", mix=CutMix(), labels=30), {"teacher": teacher}, tmp_path, data, task)
    inputs = {"model": STUDENT, "teacher": mixed}
    with pytest.raises(
        RecipeError, match=r"mix is .*cutmix.*alpha 0.5.*, and the store 'teacher' was labelled with .*alpha 1"
    ):
        done(step.replace(mix=CutMix(alpha=0.5)), inputs, tmp_path, data, task)
    with pytest.raises(RecipeError, match=r"mix is none, and the store 'teacher' was labelled with .*cutmix"):
        done(step, inputs, tmp_path, data, task)
    with pytest.raises(RecipeError, match=r"labels is not set, and the store 'teacher' was labelled with 30: labelled"):
        done(step.replace(mix=CutMix()), inputs, tmp_path, data, task)
    plain = done(Label(name="plain", augment=False), {"teacher": teacher}, tmp_path, data, task)
    with pytest.raises(
        RecipeError, match=r"augment is true, .* labelled with augment: false; .* label again with augment"
    ):
        done(step, {"model": STUDENT, "teacher": plain}, tmp_path, data, task)


def test_features_that_are_kept_are_named(
    data: Dataset, task: ImageClassification, teacher: Artifact, tmp_path: Path
) -> None:
    step = Label(name="labels", features=("stem.0", "stem.2"), views=2)
    store = done(step, {"teacher": teacher}, tmp_path, data, task)
    distill = Distill(name="s", objective=KD() + Hint(layers={"0": "stem.1"}), **LEARN)
    message = r"the feature 'stem.1'; the store keeps stem.0, stem.2 \(did you mean stem.[02].*\); name the layers"
    with pytest.raises(RecipeError, match=message):
        done(distill, {"model": STUDENT, "teacher": store}, tmp_path, data, task)


@pytest.mark.parametrize("mix", [None, Mixup()])
def test_absent_samples_are_counted_before_training(
    mix: Any, data: Dataset, task: ImageClassification, teacher: Artifact, tmp_path: Path
) -> None:
    """Also one that comes late in the epoch, and one that is absent in one view alone."""
    part = replace(data, splits={"train": data.splits["train"].take(np.arange(90))}, fingerprint="part")
    store = done(Label(name="labels", views=2, mix=mix), {"teacher": teacher}, tmp_path, part, task)
    steps: list[float] = []
    step = Distill(name="s", mix=mix, **LEARN)
    missing = len(data.splits["train"]) - 90
    total = r"96 training samples in 2 views each"
    message = (
        rf"the store 'teacher' \(.*\) holds no answer for {missing} of {total} \({2 * missing} answers are missing\)"
    )
    with pytest.raises(DataError, match=message if mix is None else rf"holds no answer for \d+ of {total}"):
        done(
            step,
            {"model": STUDENT, "teacher": store},
            tmp_path,
            data,
            task,
            progress=lambda done_, total_, text: steps.append(done_),
        )
    assert steps == []
    assert not (tmp_path / "s").exists()


def test_a_store_cannot_be_trained(data: Dataset, task: ImageClassification, labels: Artifact, tmp_path: Path) -> None:
    from decoct.recipe.recipe import Recipe

    with pytest.raises(RecipeError, match="is a soft-label store, which answers but cannot be trained"):
        Stored(labels.folder).build(task.reading("student").interface)
    with pytest.raises(
        RecipeError, match=r"model: .* is a soft-label store, which answers but cannot be trained; use it"
    ):
        done(Train(name="s", **LEARN), {"model": labels}, tmp_path, data, task)
    plain = {
        "version": 1,
        "task": {"use": "image_classification"},
        "data": {"use": "digits", "limit": 50},
        "models": {"small": {"use": "mlp", "hidden": [4]}},
        "steps": [
            {"use": "train", "name": "t", "inputs": {"model": "small"}},
            {"use": "label", "name": "labels", "inputs": {"teacher": "t"}},
            {"use": "train", "name": "s", "inputs": {"model": "labels"}},
        ],
    }
    with pytest.raises(RecipeError, match=r"steps\[2\].inputs.*labels.*store"):
        Recipe.parse(plain)


def test_what_is_no_store_cannot_be_opened(
    task: ImageClassification, teacher: Artifact, labels: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"path is .*nowhere, which holds no artifact"):
        Stored(tmp_path / "nowhere").open()
    with pytest.raises(
        RecipeError, match=r"path is .*teacher, an artifact of kind model; a store is written by step label"
    ):
        Stored(teacher.folder).open()
    with pytest.raises(
        RecipeError, match=r"fingerprint is 0123, and .* was labelled by the teacher [0-9a-f]{16}; label"
    ):
        Stored(labels.folder, fingerprint="0123").open()
    assert Stored(labels.folder, fingerprint=teacher.hash[:8]).open().kind == "store"
    with pytest.raises(RecipeError, match="a stored teacher is an artifact of kind store, not"):
        StoredTeacher().open(teacher, task.reading("teacher"), Needs())
    with pytest.raises(RecipeError, match="asks for gradients of the teacher's inputs, which a store does not hold"):
        StoredTeacher().open(labels, task.reading("teacher"), Needs(gradient=True))
