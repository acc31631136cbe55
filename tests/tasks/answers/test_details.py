"""A closer look at a model: figures of each class are scikit-learn's, and the samples shown are those that differ."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn import metrics

from decoct.tasks.answers.classes import Classes
from decoct.tasks.answers.details import CURVES, ClassDetails, NumberDetails, curve, first_few, thinned
from decoct.tasks.answers.numbers import Numbers


def made(classes, size, seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=size)
    logits = generator.normal(size=(size, classes)) + 1.5 * np.eye(classes)[labels]
    return logits, generator.normal(size=(size, classes)), np.where(generator.random(size) < 0.9, labels, -100)


@settings(max_examples=30, deadline=None)
@given(classes=st.integers(2, 6), size=st.integers(1, 120), seed=st.integers(0, 999), cut=st.integers(1, 50))
def test_figures_of_each_class_are_those_of_scikit_learn(classes, size, seed, cut):
    logits, other, labels = made(classes, size, seed)
    names = "abcdef"[:classes]
    details = Classes(classes=tuple(names)).details()
    for start in range(0, size, cut):
        part = slice(start, start + cut)
        details.add(logits[part], labels[part], other[part])
    known = labels >= 0
    if not known.any():
        assert details.by_class() == []
        return
    true, said, sure = labels[known], logits[known].argmax(1), softmax(logits[known], axis=1)
    precision, recall, f1, counts = metrics.precision_recall_fscore_support(
        true, said, labels=range(classes), zero_division=np.nan
    )
    found = details.by_class()
    assert [each["label"] for each in found] == list(names)
    for i, each in enumerate(found):
        assert each["n"] == counts[i]
        assert (np.nan if each["precision"] is None else each["precision"]) == pytest.approx(precision[i], nan_ok=True)
        assert (np.nan if each["recall"] is None else each["recall"]) == pytest.approx(recall[i], nan_ok=True)
        assert (np.nan if each["f1"] is None else each["f1"]) == pytest.approx(f1[i], nan_ok=True)
        if counts[i]:
            expected = metrics.average_precision_score(true == i, sure[:, i])
            assert each["average_precision"] == pytest.approx(expected, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 400), seed=st.integers(0, 999), ties=st.booleans())
def test_a_curve_is_thinned_and_keeps_points_of_the_whole_one(size, seed, ties):
    generator = np.random.default_rng(seed)
    scores = generator.integers(5, size=size) / 5 if ties else generator.normal(size=size)
    positive = generator.random(size) < 0.4
    positive[0] = True
    precision, recall, _ = metrics.precision_recall_curve(positive, scores)
    found = curve(scores, positive)["curve"]
    whole = {(round(float(x), 4), round(float(y), 4)) for x, y in zip(recall, precision)}
    points = list(zip(found["recall"], found["precision"]))
    assert set(points) <= whole
    assert len(points) <= 42
    assert points[0] == (0.0, 1.0)
    assert points[-1][0] == 1.0
    assert found["recall"] == sorted(found["recall"])


def test_many_classes_have_figures_and_no_curves():
    classes = CURVES + 1
    details = ClassDetails(list(map(str, range(classes))))
    logits, _, labels = made(classes, 60, 0)
    details.add(logits, labels, None)
    found = details.by_class()
    assert len(found) == classes
    assert not any("curve" in each for each in found)
    assert details.apart(5) == (0, [])


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 80), seed=st.integers(0, 999), most=st.integers(0, 30))
def test_samples_that_differ_are_those_and_the_worst_class_is_first(size, seed, most):
    logits, other, labels = made(4, size, seed)
    details = ClassDetails("abcd")
    details.add(logits, labels, other)
    count, found = details.apart(most)
    said, taught = logits.argmax(1), other.argmax(1)
    assert count == (said != taught).sum()
    assert len(found) == min(most, count)
    assert len({each["index"] for each in found}) == len(found)
    for each in found:
        i = each["index"]
        assert said[i] != taught[i]
        assert each["model"] == {"class": "abcd"[said[i]], "probability": pytest.approx(softmax(logits[i]).max())}
        assert each["reference"] == {"class": "abcd"[taught[i]], "probability": pytest.approx(softmax(other[i]).max())}
        assert each["true"] == (None if labels[i] < 0 else "abcd"[labels[i]])
    recalls = {c: (said[labels == c] == c).mean() for c in range(4) if (labels == c).any()}
    candidates = {labels[i] for i in np.flatnonzero(said != taught) if labels[i] >= 0}
    if found and candidates:
        assert recalls["abcd".index(found[0]["true"])] == min(recalls[c] for c in candidates)


def test_no_class_takes_all_places_while_others_wait():
    groups = np.array([0] * 10 + [1, 2])
    assert first_few(range(12), groups, 6) == [0, 1, 2, 10, 11, 3]
    assert thinned(np.array([1.0, 0.5, 0.0]), 5) == [0, 1, 2]


def test_numbers_furthest_apart_come_first_in_their_own_units():
    details = Numbers(target_mean=(10.0,), target_std=(2.0,)).details()
    assert isinstance(details, NumberDetails)
    said, other = np.array([[0.0], [1.0], [3.0]]), np.array([[0.5], [1.0], [-1.0]])
    details.add(said, np.array([[0.0], [0.0], [np.nan]]), other)
    count, found = details.apart(5)
    assert (count, [each["index"] for each in found]) == (2, [2, 0])
    assert found[0] == {"index": 2, "true": None, "model": {"values": [16.0]}, "reference": {"values": [8.0]}}
    assert found[1]["true"] == [10.0]
