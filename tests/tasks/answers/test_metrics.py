"""Metrics against torchmetrics and scikit-learn."""

import numpy as np
import pytest
import torch

from decoct.errors import DataError, Diverged, RecipeError
from decoct.tasks.answers.metrics import (
    calibration_error,
    class_fidelity,
    classification_scores,
    confusion_matrix,
    log_softmax,
    regression_scores,
)


def made(classes: int, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(classes)
    labels = generator.integers(0, classes, count)
    logits = generator.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels]
    return logits, labels


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_classification_against_torchmetrics(classes: int) -> None:
    from torchmetrics.functional import classification as theirs

    logits, labels = made(classes)
    scores = classification_scores(logits, labels, "auc")
    p, y = torch.from_numpy(np.exp(log_softmax(logits))), torch.from_numpy(labels)
    expected = {
        "accuracy": theirs.multiclass_accuracy(p, y, classes, average="micro"),
        "auc": theirs.multiclass_auroc(p, y, classes, average="macro"),
        "ece": theirs.multiclass_calibration_error(p, y, classes, n_bins=15, norm="l1"),
        "f1": theirs.multiclass_f1_score(p, y, classes, average="macro"),
    }
    if classes == 2:
        expected["f1"] = theirs.binary_f1_score(p[:, 1], y)
        expected["auc"] = theirs.binary_auroc(p[:, 1], y)
        expected["average_precision"] = theirs.binary_average_precision(p[:, 1], y)
    for name, value in expected.items():
        assert scores[name] == pytest.approx(float(value), abs=1e-6), name
    assert next(iter(scores)) == "auc"


@pytest.mark.parametrize("classes", [2, 5])
def test_cross_entropy_against_scikit_learn(classes: int) -> None:
    from sklearn.metrics import log_loss

    logits, labels = made(classes)
    found = classification_scores(logits, labels, "accuracy")["cross_entropy"]
    assert found == pytest.approx(log_loss(labels, np.exp(log_softmax(logits))), rel=1e-12)


def test_macro_f1_leaves_out_classes_that_never_occur() -> None:
    from sklearn.metrics import f1_score

    logits = np.eye(5)[[0, 1, 1, 0]]
    scores = classification_scores(logits, np.array([0, 1, 0, 0]), "f1")
    assert scores["f1"] == pytest.approx(f1_score([0, 1, 0, 0], [0, 1, 1, 0], average="macro"))


def test_saturated_confidence_counts_in_the_last_bin() -> None:
    assert calibration_error(np.array([1.0, 0.99]), np.array([True, False])) == pytest.approx(0.495)


def test_auc_is_exact_where_probabilities_saturate() -> None:
    logits = np.array([[0.0, 100.0], [0.0, 200.0], [0.0, 300.0], [0.0, 400.0]])
    assert classification_scores(logits, np.array([0, 0, 1, 1]), "auc")["auc"] == 1.0


def test_scores_that_cannot_be() -> None:
    logits = np.zeros((3, 2))
    with pytest.raises(DataError, match="auc needs every one of the 2 classes"):
        classification_scores(logits, np.array([1, 1, 1]), "auc")
    assert "auc" not in classification_scores(logits, np.array([1, 1, 1]), "accuracy")
    with pytest.raises(DataError, match="no labelled sample"):
        classification_scores(logits[:0], np.array([], np.int64), "accuracy")
    with pytest.raises(DataError, match="labels reach from 0 to 2, the model gives 2"):
        classification_scores(logits, np.array([0, 1, 2]), "accuracy")
    logits[1, 0] = np.nan
    with pytest.raises(Diverged, match="non-finite logits for 1 of 3"):
        classification_scores(logits, np.array([0, 1, 1]), "accuracy")


def test_regression_against_torchmetrics() -> None:
    from torchmetrics.functional import regression as theirs

    generator = np.random.default_rng(0)
    target, predicted = generator.normal(size=(2, 300, 2)) * 1e5
    scores = regression_scores(predicted, target)
    a, b = torch.from_numpy(predicted), torch.from_numpy(target)
    assert scores["rmse"] == pytest.approx(theirs.mean_squared_error(a, b, squared=False).item(), rel=1e-9)
    assert scores["mae"] == pytest.approx(theirs.mean_absolute_error(a, b).item(), rel=1e-9)
    assert scores["r2"] == pytest.approx(theirs.r2_score(a, b).item(), rel=1e-6)


def test_fidelity_against_scipy() -> None:
    from scipy.special import rel_entr, softmax

    student, teacher = made(6)[0], made(6)[0][::-1] * 2
    found = class_fidelity(student, teacher)
    p, q = softmax(teacher, -1), softmax(student, -1)
    assert found["kl"] == pytest.approx(rel_entr(p, q).sum(1).mean(), rel=1e-12)
    assert found["agreement"] == (student.argmax(1) == teacher.argmax(1)).mean()
    with pytest.raises(RecipeError, match="differ in shape"):
        class_fidelity(student, teacher[:, :3])


def test_fidelity_with_a_class_ruled_out_on_both_sides() -> None:
    logits = np.array([[0.0, 1.0, -np.inf]])
    assert class_fidelity(logits, logits) == {"agreement": 1.0, "kl": 0.0}


def test_confusion_against_scikit_learn() -> None:
    from sklearn.metrics import confusion_matrix as theirs

    logits, labels = made(4)
    assert (confusion_matrix(logits.argmax(1), labels, 4) == theirs(labels, logits.argmax(1))).all()
