"""Estimators that teach the rows that they were fitted on: out-of-fold answers are those of scikit-learn."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from decoct.artifact import Artifact
from decoct.data.base import Dataset, Split
from decoct.data.hashing import fingerprint
from decoct.errors import RecipeError
from decoct.models.mlp import MLP
from decoct.outputs import Needs
from decoct.steps.base import Context
from decoct.steps.distill import Distill
from decoct.steps.labelling.step import Label
from decoct.steps.learning.batches import evaluation_batches
from decoct.steps.learning.folds import folds_of
from decoct.steps.learning.teachers import open_teacher
from decoct.steps.train import Train
from decoct.steps.train_estimator import TrainEstimator
from decoct.store.codecs.dense import DenseCodec
from decoct.store.reading import Store
from decoct.tasks.regression import Regression
from decoct.tasks.tabular_classification import TabularClassification
from decoct.teachers.estimator import EstimatorTeacher
from decoct.teachers.folded import assigned
from decoct.training.budget import Budget
from decoct.training.engine import Engine

TREES = {"use": "extra_trees", "n_estimators": 12}
FLOOR = 1e-6


def table(x: np.ndarray, name: str, target: np.ndarray, classes: tuple[str, ...] = ()) -> Dataset:
    """300 rows to train on, 20 of them twice, and 100 to validate on."""
    order = np.random.default_rng(0).permutation(len(x))
    picked = {"train": np.concatenate([order[:280], order[:20]]), "validation": order[280:380]}
    splits = {
        part: Split({"features": x[rows].astype(np.float64), name: target[rows]}, 7 * rows.astype(np.uint64) + 3)
        for part, rows in picked.items()
    }
    return Dataset(splits, fingerprint(splits, classes, ()), classes)


@pytest.fixture(scope="module")
def cancer() -> Dataset:
    x, y = load_breast_cancer(return_X_y=True)
    return table(x[:, :3], "label", y.astype(np.int64), ("bad", "good"))


@pytest.fixture(scope="module")
def diabetes() -> Dataset:
    x, y = load_diabetes(return_X_y=True)
    return table(x, "value", y)


def room(data: Dataset, task: object, folder: Path, name: str = "student") -> Context:
    resolved = task.resolve(data)
    return Context(task=resolved, data=data, name=name, folder=folder / name, work=folder / f"{name}.work", seed=5)


def trees(data: Dataset, task: object, folder: Path, **options: object) -> Artifact:
    step = TrainEstimator(name="trees", estimator=TREES, **options)
    return step.run({}, replace(room(data, task, folder, "trees"), seed=11))


@pytest.fixture(scope="module")
def forest(cancer: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return trees(cancer, TabularClassification(), tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module")
def regressor(diabetes: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return trees(diabetes, Regression(), tmp_path_factory.mktemp("numbers"))


def said(value: Artifact, context: Context, split: str = "train", **options: object) -> np.ndarray:
    with open_teacher(value, context, Engine("cpu"), Needs(), **options) as predict:
        answers = [predict(batch).logits.double().numpy() for batch in evaluation_batches(context, split)]
    return np.concatenate(answers)


def rows(context: Context) -> tuple[np.ndarray, np.ndarray]:
    """What the estimator gets of the training rows, and their targets."""
    preprocessing = context.task.reading("student").preprocessing()
    batches = list(evaluation_batches(context, "train"))
    features = [preprocessing(batch.side("student")).numpy() for batch in batches]
    return np.concatenate(features), np.concatenate([batch.target.numpy() for batch in batches])


@pytest.mark.parametrize("count", [None, 3])
def test_probabilities_are_those_of_cross_val_predict(
    cancer: Dataset, forest: Artifact, tmp_path: Path, count: int | None
) -> None:
    teacher, here = forest, room(cancer, TabularClassification(), tmp_path)
    found = said(teacher, here, kind=EstimatorTeacher(folds=count))
    folds = folds_of(teacher, "teacher", here, here.task, count)
    assert folds.count == (count or 5)
    features, target = rows(here)
    model = ExtraTreesClassifier(n_estimators=12, max_features="sqrt", random_state=11)
    cut = PredefinedSplit(folds.folds)
    expected = cross_val_predict(model, features, target, cv=cut, method="predict_proba")
    np.testing.assert_allclose(found, np.log(np.maximum(expected, FLOOR)), atol=1e-4)
    whole = said(teacher, here, kind=EstimatorTeacher(folds=1))
    fitted = model.fit(features, target)
    np.testing.assert_allclose(whole, np.log(np.maximum(fitted.predict_proba(features), FLOOR)), atol=1e-4)
    assert np.exp(whole).max(1).mean() > 0.999 > 0.95 > np.exp(found).max(1).mean()


def test_numbers_are_those_of_cross_val_predict(diabetes: Dataset, regressor: Artifact, tmp_path: Path) -> None:
    teacher, here = regressor, room(diabetes, Regression(), tmp_path)
    folds = folds_of(teacher, "teacher", here, here.task, None)
    features, target = rows(here)
    model = ExtraTreesRegressor(n_estimators=12, max_features="sqrt", random_state=11)
    expected = cross_val_predict(model, features, target[:, 0], cv=PredefinedSplit(folds.folds))
    np.testing.assert_allclose(said(teacher, here)[:, 0], expected, atol=1e-4)


def test_rows_that_it_was_not_fitted_on_are_answered_by_the_whole(cancer: Dataset, tmp_path: Path) -> None:
    teacher = trees(cancer, TabularClassification(), tmp_path, labels=100)
    here = room(cancer, TabularClassification(), tmp_path)
    whole, found = said(teacher, here, kind=EstimatorTeacher(folds=1)), said(teacher, here)
    trained = np.load(teacher.file("trained_on.npy"))
    inside = np.isin(cancer.splits["train"].keys, trained)
    assert inside.sum() >= 100 > len(trained) - 5
    np.testing.assert_array_equal(found[~inside], whole[~inside])
    assert (found[inside] != whole[inside]).any()
    held_out = [said(teacher, here, "validation", kind=EstimatorTeacher(folds=each)) for each in (1, None)]
    np.testing.assert_array_equal(*held_out)


def test_folds_are_even_over_classes_and_keep_equal_rows_together() -> None:
    keys = np.random.default_rng(0).integers(0, 1 << 60, 1000).astype(np.uint64)
    classes = (np.arange(1000) < 90).astype(np.int64)
    found = assigned(keys, classes, 7)
    for each in (0, 1):
        counts = np.bincount(found[classes == each], minlength=7)
        assert counts.max() - counts.min() <= 1
    counts = np.bincount(found)
    assert counts.max() - counts.min() <= 1
    order = np.random.default_rng(1).permutation(1000)
    np.testing.assert_array_equal(assigned(keys[order], classes[order], 7), found[order])


def test_a_store_holds_the_same_answers_by_two_workers_and_alone(
    cancer: Dataset, forest: Artifact, tmp_path: Path
) -> None:
    teacher, here = forest, room(cancer, TabularClassification(), tmp_path)
    expected = said(teacher, here)
    context = room(cancer, TabularClassification(), tmp_path, "store")
    step = Label(name="store", keep=DenseCodec(dtype="float32"), workers=2, shard=100)
    made = step.run({"teacher": teacher}, context)
    assert made.meta["folds"] == {"teacher": 5}
    assert made.meta["teacher"]["fingerprint"] == teacher.hash
    seen = np.concatenate([batch.seen for batch in evaluation_batches(here, "train")])
    np.testing.assert_allclose(Store.open(made.folder).read(seen).logits.numpy(), expected, atol=1e-4)
    whole = Label(name="store", keep=DenseCodec(dtype="float32"), folds=1, shard=100)
    with pytest.warns(UserWarning, match=r"near one-hot"):
        alone = whole.run({"teacher": teacher}, room(cancer, TabularClassification(), tmp_path, "whole"))
    assert "folds" not in alone.meta
    with pytest.raises(RecipeError, match=r"a store of another folds .*5.* there, null here"):
        whole.refuse_another({"teacher": teacher}, context)


def test_the_student_learns_from_answers_that_are_not_the_labels(
    cancer: Dataset, forest: Artifact, tmp_path: Path
) -> None:
    teacher = forest
    step = Distill(name="student", budget=Budget(steps=2), objective={"use": "soft_cross_entropy", "temperature": 1.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step.run({"model": MLP(hidden=(4,)), "teacher": teacher}, room(cancer, TabularClassification(), tmp_path))
    again = step.replace(teachers={"teacher": {"use": "estimator", "folds": 1}})
    with pytest.warns(UserWarning, match=r"teacher is near one-hot on what it teaches.*1\.000.*give it folds"):
        again.run(
            {"model": MLP(hidden=(4,)), "teacher": teacher}, room(cancer, TabularClassification(), tmp_path, "again")
        )


def test_networks_that_memorised_are_warned_of_and_cannot_be_folded(cancer: Dataset, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    parts = {}
    for name, count in (("train", 40), ("validation", 60)):
        x, y = generator.normal(size=(count, 40)), generator.integers(0, 2, count)
        parts[name] = Split({"features": x, "label": y}, generator.integers(0, 1 << 60, count).astype(np.uint64))
    data = Dataset(parts, "e" * 64, ("no", "yes"))
    task = TabularClassification()
    step = Train(
        name="net", budget=Budget(epochs=150), batch_size=40, select="last", optimizer={"use": "adamw", "lr": 0.01}
    )
    net = step.run({"model": MLP(hidden=(32,))}, room(data, task, tmp_path, "net"))
    student = {"model": MLP(hidden=(4,)), "teacher": net}
    short = Distill(name="student", budget=Budget(steps=1))
    with pytest.warns(UserWarning, match=r"teacher is near one-hot on what it teaches.*of 0.9.. on those held out"):
        short.run(student, room(data, task, tmp_path))
    with pytest.raises(RecipeError, match=r"folds is 3, and teacher is no estimator"):
        Label(name="store", folds=3).run({"teacher": net}, room(data, task, tmp_path, "store"))


def test_trees_that_repeat_numbers_are_warned_of(diabetes: Dataset, regressor: Artifact, tmp_path: Path) -> None:
    teacher = regressor
    inputs = {"model": MLP(hidden=(4,)), "teacher": teacher}
    step = Distill(name="student", budget=Budget(steps=1), objective={"use": "regression_kd"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step.run(inputs, room(diabetes, Regression(), tmp_path))
    whole = step.replace(teachers={"teacher": {"use": "estimator", "folds": 1}})
    with pytest.warns(UserWarning, match=r"teacher errs on the training samples by .* give it folds"):
        whole.run(inputs, room(diabetes, Regression(), tmp_path, "whole"))


def test_what_cannot_be_folded_is_said(cancer: Dataset, forest: Artifact, tmp_path: Path) -> None:
    teacher, here = forest, room(cancer, TabularClassification(), tmp_path)
    with pytest.raises(RecipeError, match=r"folds is 400, and 280 rows are too few for 400 folds; say .*folds: 1"):
        said(teacher, here, folds=400)
    fewer = replace(here, data=cancer.narrowed(np.arange(150)))
    with pytest.warns(UserWarning, match=r"only 150 of its 280 rows are there.*folds: 5"):
        assert folds_of(teacher, "teacher", fewer, here.task, None) is None
    assert folds_of(teacher, "teacher", fewer, here.task, 4).count == 4
    other = replace(here, data=cancer.narrowed(np.arange(0)))
    assert folds_of(teacher, "teacher", other, here.task, None) is None
    shutil.copytree(teacher.folder, tmp_path / "old")
    teacher = replace(teacher, folder=tmp_path / "old")
    teacher.file("trained_on.npy").unlink()
    with pytest.warns(UserWarning, match=r"does not say which rows it was fitted on; train it again"):
        assert folds_of(teacher, "teacher", here, here.task, None) is None
    with pytest.raises(RecipeError, match=r"folds is 2, and .*does not say which rows"):
        folds_of(teacher, "teacher", here, here.task, 2)


def test_too_few_of_a_class_are_said(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(30, 2))
    label = np.r_[np.zeros(29, np.int64), 1]
    splits = {"train": Split({"features": x, "label": label}, np.arange(30, dtype=np.uint64))}
    data = Dataset(splits, "e" * 64, ("no", "yes"))
    teacher, here = trees(data, TabularClassification(), tmp_path), room(data, TabularClassification(), tmp_path)
    with pytest.warns(UserWarning, match=r"with 5 folds a fit would see one class alone"):
        assert said(teacher, here).shape == (30, 2)
    with pytest.raises(RecipeError, match=r"folds is 2.*one class alone"):
        said(teacher, here, folds=2)
    assert torch.get_num_threads() >= 1
