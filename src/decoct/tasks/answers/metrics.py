"""Metrics in float64 from logits and labels, by scikit-learn where it has them."""

from __future__ import annotations

import numpy as np

from decoct.errors import DataError, Diverged, RecipeError

BINS = 15


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """log softmax over the last axis; Diverged where a logit is NaN or +inf.

    >>> log_softmax(np.array([[0.0, 0.0]])).round(4)
    array([[-0.6931, -0.6931]])
    """
    top = logits.max(axis=-1, keepdims=True)
    if not np.isfinite(top).all():
        wrong = int((~np.isfinite(top)).sum())
        raise Diverged(f"the model returned non-finite logits for {wrong} of {len(logits)} samples")
    shifted = logits - top
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


class ClassScores:
    """Metrics of class logits, batch by batch; a few numbers are kept of each sample, all of its logits for `auc` over
    more than two classes alone."""

    def __init__(self, main: str) -> None:
        self._main = main
        self._classes = 0
        self._labels, self._predicted = Column(np.int64), Column(np.int64)
        self._likelihood, self._confidence, self._margin = Column(), Column(), Column()
        self._log_q: list[np.ndarray] = []

    @property
    def count(self) -> int:
        """Samples counted so far."""
        return self._labels.count

    def add(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Counts logits `[N, C]` float64 with labels `[N]`; DataError for a label outside the classes."""
        classes = self._classes = logits.shape[1]
        if not len(labels):
            return
        if labels.min() < 0 or labels.max() >= classes:
            raise DataError(f"labels reach from {labels.min()} to {labels.max()}, the model gives {classes} classes")
        log_q = log_softmax(logits)
        self._labels.add(labels)
        self._predicted.add(logits.argmax(axis=1))
        self._likelihood.add(log_q[np.arange(len(labels)), labels])
        self._confidence.add(np.exp(log_q.max(axis=1)))
        if classes == 2:
            self._margin.add(logits[:, 1] - logits[:, 0])
        elif self._main == "auc":
            self._log_q.append(log_q)

    def scores(self) -> dict[str, float]:
        """`main` first.

        accuracy; f1: of class 1 for two classes, else the macro mean over the classes that occur; auc: area under the
        ROC curve, for more classes the macro mean of one against the rest; average_precision (two classes);
        cross_entropy in nats; taylor_cross_entropy: its series cut off after two terms (Feng et al. 2020), which a few
        sure mistakes do not rule; ece: expected calibration error over 15 equal bins of confidence (Guo et al. 2017).
        """
        from sklearn.metrics import accuracy_score, average_precision_score, f1_score, roc_auc_score

        classes, main = self._classes, self._main
        if not self.count:
            raise DataError("there is no labelled sample to score on")
        labels, predicted = self._labels.all(), self._predicted.all()
        scores = {
            "accuracy": float(accuracy_score(labels, predicted)),
            "f1": float(f1_score(labels, predicted, average="binary" if classes == 2 else "macro", zero_division=0)),
        }
        complete = len(np.unique(labels)) == classes
        if complete and classes == 2:
            scores["auc"] = float(roc_auc_score(labels, self._margin.all()))
            scores["average_precision"] = float(average_precision_score(labels, self._margin.all()))
        elif complete and main == "auc":
            probabilities = np.exp(np.concatenate(self._log_q))
            each = [float(roc_auc_score(labels == c, probabilities[:, c])) for c in range(classes)]
            scores["auc"] = float(np.mean(each))
        scores["cross_entropy"] = float(-self._likelihood.all().mean())
        missed = -np.expm1(self._likelihood.all())
        scores["taylor_cross_entropy"] = float((missed + missed**2 / 2).mean())
        scores["ece"] = calibration_error(self._confidence.all(), predicted == labels)
        if main not in scores:
            raise DataError(
                f"{main} needs every one of the {classes} classes among the labels; choose another metric_name"
            )
        return {main: scores.pop(main), **scores}

    def confusion(self) -> np.ndarray:
        """int64 `[C, C]`: rows are the labels, columns what was predicted."""
        return confusion_matrix(self._predicted.all(), self._labels.all(), self._classes)


class ClassFidelity:
    """How near class logits are to a reference's, batch by batch.

    agreement: share of samples on which both predict one class; kl: mean KL(reference ‖ own) in nats.
    """

    def __init__(self) -> None:
        self._same, self._kl = Column(np.bool_), Column()

    @property
    def count(self) -> int:
        """Samples counted so far."""
        return self._same.count

    def add(self, student: np.ndarray, teacher: np.ndarray) -> None:
        """Counts logits `[N, C]` of both."""
        if student.shape != teacher.shape:
            raise RecipeError(
                f"student logits {list(student.shape)} and teacher logits {list(teacher.shape)} differ in shape"
            )
        log_q, log_p = log_softmax(student), log_softmax(teacher)
        p = np.exp(log_p)
        with np.errstate(invalid="ignore"):
            terms = np.where(p > 0, p * (log_p - log_q), 0.0)
        self._same.add(student.argmax(axis=1) == teacher.argmax(axis=1))
        self._kl.add(terms.sum(axis=1))

    def scores(self) -> dict[str, float]:
        """Empty where nothing was counted."""
        if not self.count:
            return {}
        return {"agreement": float(self._same.all().mean()), "kl": max(0.0, float(self._kl.all().mean()))}


class Column:
    """A number of each sample, collected batch by batch."""

    def __init__(self, dtype: type = np.float64) -> None:
        self._dtype = dtype
        self._parts: list[np.ndarray] = []

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(map(len, self._parts))

    def add(self, values: np.ndarray) -> None:
        """Keeps the numbers of a batch."""
        self._parts.append(np.asarray(values, self._dtype))

    def all(self) -> np.ndarray:
        """All of them, in order."""
        return np.concatenate(self._parts) if self._parts else np.zeros(0, self._dtype)


def classification_scores(logits: np.ndarray, labels: np.ndarray, main: str) -> dict[str, float]:
    """`ClassScores` of logits `[N, C]` float64 and labels `[N]` at once."""
    found = ClassScores(main)
    found.add(logits, labels)
    return found.scores()


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Σ over bins of (share of samples) · |mean accuracy − mean confidence|; bins are equal parts of [0, 1].

    >>> calibration_error(np.array([0.9, 0.9]), np.array([True, False]))
    0.4
    """
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gap = np.bincount(place, weights=correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def regression_scores(predicted: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """rmse, mae, mse and r2 of `[N, D]`; the errors over all numbers, r2 the mean over the D outputs."""
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    if len(target) == 0:
        raise DataError("there is no labelled sample to score on")
    if not np.isfinite(predicted).all():
        raise Diverged("the model returned non-finite predictions")
    scores = {
        "rmse": float(np.sqrt(mean_squared_error(target, predicted))),
        "mae": float(mean_absolute_error(target, predicted)),
        **({"r2": float(r2_score(target, predicted))} if len(target) > 1 else {}),
    }
    return scores | {"mse": float(mean_squared_error(target, predicted))}


def class_fidelity(student: np.ndarray, teacher: np.ndarray) -> dict[str, float]:
    """agreement: share of samples on which both predict one class; kl: mean KL(teacher ‖ student) in nats.

    >>> class_fidelity(np.array([[1.0, 2.0]]), np.array([[1.0, 2.0]]))
    {'agreement': 1.0, 'kl': 0.0}
    """
    found = ClassFidelity()
    found.add(student, teacher)
    return found.scores()


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """int64 `[C, C]`: rows are the labels, columns the predictions.

    >>> confusion_matrix(np.array([1, 1]), np.array([0, 1]), 2)
    array([[0, 1],
           [0, 1]])
    """
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
