"""TrainEstimator: the file says what scikit-learn says, on real rows, whatever the estimator and the task."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.ensemble import HistGradientBoostingClassifier

from decoct.artifact import Artifact
from decoct.data.base import Dataset, Split
from decoct.errors import DataError, IntegrityError, RecipeError
from decoct.models.estimators.boosting import GradientBoosting
from decoct.models.estimators.growing import telling
from decoct.models.estimators.trees import rounded_down
from decoct.models.onnx_file import open_session
from decoct.outputs import Needs
from decoct.spec import Choice
from decoct.steps.base import Context
from decoct.steps.learning.batches import evaluation_batches
from decoct.steps.train_estimator import TrainEstimator
from decoct.tasks.regression import Regression
from decoct.tasks.tabular_classification import TabularClassification
from decoct.teachers.estimator import EstimatorTeacher

SMALL = {
    "gradient_boosting": {"max_iter": 12, "early_stopping": False},
    "random_forest": {"n_estimators": 15},
    "extra_trees": {"n_estimators": 15},
    "logistic_regression": {},
    "linear": {},
}


def splits(features: np.ndarray, columns: dict[str, np.ndarray], labelled: int | None = None) -> dict[str, Split]:
    order = np.random.default_rng(0).permutation(len(features))
    whole = Split({"features": features, **columns}, np.arange(len(features), dtype=np.uint64)).take(order)
    cuts = np.split(np.arange(len(order)), [int(0.6 * len(order)), int(0.8 * len(order))])
    found = dict(zip(("train", "validation", "test"), (whole.take(cut) for cut in cuts)))
    if labelled is not None:
        train = found["train"]
        found["train"] = Split(train.columns, train.keys, np.arange(len(train)) < labelled)
    return found


def classes_data(name: str, labelled: int | None = None) -> Dataset:
    x, y = {"digits": load_digits, "cancer": load_breast_cancer}[name](return_X_y=True)
    x = x.astype(np.float64)
    x[::7, 3] = np.nan
    return Dataset(splits(x, {"label": y.astype(np.int64)}, labelled), "f" * 64, tuple(map(str, np.unique(y))))


def numbers_data(outputs: int) -> Dataset:
    x, y = load_diabetes(return_X_y=True)
    value = y if outputs == 1 else np.stack([y, 1000 * x[:, 2] + y, -y], 1)
    return Dataset(splits(x, {"value": value}), "f" * 64)


def context(task: object, data: Dataset, folder: Path) -> Context:
    return Context(
        task=task.resolve(data), data=data, name="teacher", folder=folder / "01-teacher", work=folder / "work", seed=3
    )


def train(use: str, task: object, data: Dataset, folder: Path, **options: object) -> tuple[Artifact, Context]:
    room = context(task, data, folder)
    estimator = {"use": use, **SMALL[use], **options}
    return TrainEstimator(name="teacher", estimator=estimator).run({}, room), room


def rows(room: Context, split: str) -> np.ndarray:
    preprocessing = room.task.reading("student").preprocessing()
    batches = evaluation_batches(room, split)
    return np.concatenate([preprocessing(batch.side("student")).numpy() for batch in batches])


def refit(use: str, room: Context) -> object:
    """scikit-learn itself, on the same features, from the options alone."""
    spec = Choice("decoct.models.estimators").validate({"use": use, **SMALL[use]})
    target = np.concatenate([batch.target.numpy() for batch in evaluation_batches(room, "train")])
    return spec.fit(rows(room, "train"), target, seed=3)


@pytest.mark.parametrize("data", ["digits", "cancer"])
@pytest.mark.parametrize("use", ["gradient_boosting", "random_forest", "extra_trees", "logistic_regression"])
def test_probabilities_are_those_of_scikit_learn(tmp_path: Path, use: str, data: str) -> None:
    artifact, room = train(use, TabularClassification(), classes_data(data), tmp_path)
    assert artifact.kind == "estimator"
    session = open_session(artifact.file("model.onnx"))
    raw = room.data.splits["test"].columns["features"].astype(np.float32)
    found = np.exp(session({"features": raw})["logits"])
    expected = refit(use, room).predict_proba(rows(room, "test"))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(session({"features": raw[:1]})["logits"], np.log(found[:1]), atol=1e-5)
    assert artifact.meta["verified"]["max_abs_diff"] <= 1e-5
    assert 0.8 < artifact.scores["accuracy"] <= 1
    log = [json.loads(line) for line in artifact.file("log.jsonl").read_text().splitlines()]
    assert log[-1]["scores"] == artifact.scores


@pytest.mark.parametrize(
    ("use", "outputs"),
    [("gradient_boosting", 1), ("random_forest", 1), ("random_forest", 3), ("linear", 3), ("linear", 1)],
)
def test_numbers_are_those_of_scikit_learn(tmp_path: Path, use: str, outputs: int) -> None:
    artifact, room = train(use, Regression(), numbers_data(outputs), tmp_path)
    raw = room.data.splits["test"].columns["features"].astype(np.float32)
    values = open_session(artifact.file("model.onnx"))({"features": raw})["values"]
    assert values.shape == (len(raw), outputs)
    standard = refit(use, room).predict(rows(room, "test")).reshape(-1, outputs)
    expected = standard * np.array(room.task.target_std) + np.array(room.task.target_mean)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4 * expected.std())
    with EstimatorTeacher().open(artifact, room.task.reading("teacher"), Needs()) as predict:
        answers = [predict(batch).logits.numpy() for batch in evaluation_batches(room, "test")]
    np.testing.assert_allclose(np.concatenate(answers), standard, atol=1e-4)


@pytest.mark.parametrize("use", list(SMALL))
def test_torch_runs_the_same_module(use: str) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(200, 5)).astype(np.float32)
    y = (x[:, 0] + generator.normal(size=200) > 0).astype(int) if use != "linear" else x[:, :1].astype(float)
    spec = Choice("decoct.models.estimators").validate({"use": use, **SMALL[use]})
    fitted = spec.fit(x, y, seed=0)
    found = spec.module(fitted, 2 if use != "linear" else 1)(torch.from_numpy(x)).numpy()
    if use == "linear":
        np.testing.assert_allclose(found, fitted.predict(x).reshape(-1, 1), atol=1e-5)
    else:
        np.testing.assert_allclose(np.exp(found), fitted.predict_proba(x), atol=1e-5)


def test_thresholds_are_rounded_so_that_no_row_changes_side() -> None:
    generator = np.random.default_rng(0)
    thresholds = np.r_[generator.normal(size=10_000), generator.normal(size=100).astype(np.float32), 1e300]
    down = rounded_down(thresholds)
    assert (down.astype(np.float64) <= thresholds).all()
    above = np.nextafter(down[:-1], np.float32(np.inf))
    assert (above.astype(np.float64) > thresholds[:-1]).all()


def test_classes_that_training_lacks_keep_their_column(tmp_path: Path) -> None:
    data = classes_data("digits")
    train_split = data.splits["train"]
    kept = train_split.take(np.flatnonzero(train_split.columns["label"] != 4))
    data = Dataset({**data.splits, "train": kept}, data.fingerprint, data.classes)
    artifact, room = train("random_forest", TabularClassification(), data, tmp_path)
    raw = room.data.splits["test"].columns["features"].astype(np.float32)
    p = np.exp(open_session(artifact.file("model.onnx"))({"features": raw})["logits"])
    expected = refit("random_forest", room)
    assert p.shape[1] == 10
    assert (p[:, 4] < 1e-11).all()
    np.testing.assert_allclose(np.delete(p, 4, 1), expected.predict_proba(rows(room, "test")), atol=1e-5)


def test_only_labelled_samples_teach(tmp_path: Path) -> None:
    part, room = train("random_forest", TabularClassification(), classes_data("cancer", labelled=60), tmp_path / "a")
    cut = room.data.splits["train"].take(np.arange(60))
    splits_left = {**room.data.splits, "train": Split(cut.columns, cut.keys)}
    alone = context(room.task, Dataset(splits_left, "g" * 64, room.data.classes), tmp_path / "b")
    assert alone.task == room.task
    same = TrainEstimator(name="teacher", estimator={"use": "random_forest", "n_estimators": 15}).run({}, alone)
    assert same.file("model.onnx").read_bytes() == part.file("model.onnx").read_bytes()


def test_teacher_gives_finite_logits_with_the_floor(tmp_path: Path) -> None:
    artifact, room = train("random_forest", TabularClassification(), classes_data("digits"), tmp_path)
    with EstimatorTeacher(floor=1e-3).open(artifact, room.task.reading("teacher"), Needs()) as predict:
        batch = next(evaluation_batches(room, "test"))
        logits = predict(batch).logits
    assert logits.min().item() == pytest.approx(np.log(1e-3))
    p = refit("random_forest", room).predict_proba(rows(room, "test"))[: len(batch)]
    np.testing.assert_allclose(logits.numpy(), np.log(np.maximum(p, 1e-3)), atol=1e-3)


def test_teacher_refuses_features_and_notices_a_changed_file(tmp_path: Path) -> None:
    artifact, room = train("logistic_regression", TabularClassification(), classes_data("cancer"), tmp_path)
    with pytest.raises(RecipeError, match="no modules to tap"):
        EstimatorTeacher().open(artifact, room.task.reading("teacher"), Needs(frozenset({"layer"})))
    with (
        pytest.raises(IntegrityError, match="changed while it taught"),
        EstimatorTeacher().open(artifact, room.task.reading("teacher"), Needs()),
    ):
        artifact.file("model.onnx").write_bytes(b"other")


def test_nothing_is_pickled(tmp_path: Path) -> None:
    artifact, room = train("extra_trees", TabularClassification(), classes_data("cancer"), tmp_path)
    names = {path.name for path in artifact.folder.iterdir()}
    assert names == {"model.onnx", "estimator.json", "task.json", "trained_on.npy", "log.jsonl", "manifest.json"}
    keys = np.load(artifact.file("trained_on.npy"), allow_pickle=False)
    np.testing.assert_array_equal(keys, np.sort(room.data.splits["train"].keys))


@pytest.mark.parametrize(
    ("use", "task", "data", "words"),
    [
        ("linear", TabularClassification(), classes_data("cancer"), "logistic_regression"),
        ("logistic_regression", Regression(), numbers_data(1), "linear"),
        ("gradient_boosting", Regression(), numbers_data(3), "random_forest"),
    ],
)
def test_wrong_pairs_name_the_right_one(tmp_path: Path, use: str, task: object, data: Dataset, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        train(use, task, data, tmp_path)
    assert not (tmp_path / "01-teacher").exists()


def test_one_class_is_refused(tmp_path: Path) -> None:
    data = classes_data("cancer")
    one = data.splits["train"].take(np.flatnonzero(data.splits["train"].columns["label"] == 1))
    with pytest.raises(DataError, match="one class"):
        train(
            "random_forest",
            TabularClassification(),
            Dataset({**data.splits, "train": one}, "f" * 64, data.classes),
            tmp_path,
        )


def test_unknown_estimator_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="random_forest"):
        TrainEstimator(name="teacher", estimator={"use": "random_forrest"})


@pytest.mark.parametrize(("use", "counts"), [("gradient_boosting", True), ("random_forest", False)])
def test_progress_is_told_while_it_fits_and_changes_nothing(use: str, counts: bool, tmp_path: Path) -> None:
    """Rounds of boosting are counted as they are done; of what scikit-learn tells nothing about, the seconds."""
    data, task = classes_data("digits"), TabularClassification()
    room = context(task, data, tmp_path)
    x = rows(room, "train")
    y = np.concatenate([batch.target.numpy() for batch in evaluation_batches(room, "train")])
    spec = Choice("decoct.models.estimators").validate({"use": use, **SMALL[use]})
    told: list[tuple[float, float, str]] = []
    with telling(lambda done, total, text: told.append((done, total, text)), use, every=0.001):
        watched = spec.fit(x, y, seed=3)
    assert told
    assert all(text.startswith(f"{use}: ") and text.endswith(" s") for _, _, text in told)
    done = [each[0] for each in told if each[1]]
    assert bool(done) == counts
    if counts:
        assert done == sorted(done)
        assert done[-1] > 1
        assert {total for _, total, _ in told if total} == {12}
    assert np.array_equal(watched.predict_proba(x), spec.fit(x, y, seed=3).predict_proba(x))
    assert not [each for each in threading.enumerate() if each.name == "progress"]


def test_a_class_of_one_sample_is_learnt_without_samples_held_out() -> None:
    rows = np.random.default_rng(0).normal(size=(60, 3))
    target = np.r_[np.zeros(30, np.int64), np.ones(29, np.int64), 2]
    with pytest.warns(UserWarning, match="a class has one sample"):
        ours = GradientBoosting(max_iter=5).fit(rows, target, seed=0)
    theirs = HistGradientBoostingClassifier(max_iter=5, early_stopping=False, random_state=0).fit(rows, target)
    np.testing.assert_array_equal(ours.predict_proba(rows), theirs.predict_proba(rows))
