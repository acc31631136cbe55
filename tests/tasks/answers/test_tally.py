"""Tallies: one pass in batches of any size scores as scikit-learn does on the whole, and keeps no logits."""

import gc
import tracemalloc
import weakref
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr, softmax
from sklearn import metrics

from decoct.errors import DataError, RecipeError
from decoct.outputs import Batch, Outputs
from decoct.tasks.answers.base import Tally
from decoct.tasks.answers.classes import Classes, OneClass, RowClasses
from decoct.tasks.answers.numbers import Numbers

SIZE = 90


def made(classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Logits of a model and of its teacher, labels, and which of them may be used."""
    generator = np.random.default_rng(seed)
    labels = np.arange(SIZE) % classes
    logits = generator.normal(size=(SIZE, classes)) + 1.2 * np.eye(classes)[labels]
    return logits, generator.normal(size=(SIZE, classes)), labels, generator.random(SIZE) < 0.8


def batches(labels: np.ndarray, known: np.ndarray, cuts: list[int]) -> list[tuple[slice, Batch]]:
    """Consecutive batches; of the labels that may not be used half are hidden, half only marked."""
    edges = [0, *sorted({each for each in cuts if 0 < each < len(labels)}), len(labels)]
    hidden = torch.from_numpy(np.where(known | (np.arange(len(labels)) % 2 == 0), labels, -100))
    parts = [slice(start, end) for start, end in pairwise(edges)]
    marked = torch.from_numpy(known)
    return [(part, Batch({"student": hidden[part] * 0}, hidden[part], marked[part])) for part in parts]


def counted(answer: OneClass, cuts: list[int], classes: int, *, reference: bool = True) -> Tally:
    logits, teacher, labels, known = made(classes)
    tally = answer.tally()
    for part, batch in batches(labels, known, cuts):
        theirs = Outputs(torch.from_numpy(teacher[part])) if reference else None
        tally.add(batch, Outputs(torch.from_numpy(logits[part])), theirs)
    return tally


cut = st.lists(st.integers(1, SIZE - 1), max_size=12)


@pytest.mark.parametrize("classes", [2, 5])
@settings(max_examples=15, deadline=None)
@given(cuts=cut)
def test_classes_in_batches_score_as_scikit_learn_on_the_whole(classes: int, cuts: list[int]) -> None:
    logits, teacher, labels, known = made(classes)
    names = tuple("abcde"[:classes])
    scores = counted(RowClasses(classes=names, metric_name="auc"), cuts, classes).scores()
    y, p = labels[known], softmax(logits[known], -1)
    predicted = p.argmax(1)
    average = "binary" if classes == 2 else "macro"
    auc = metrics.roc_auc_score(y, p[:, 1]) if classes == 2 else metrics.roc_auc_score(y, p, multi_class="ovr")
    assert next(iter(scores.quality)) == "auc"
    assert scores.quality["auc"] == pytest.approx(auc, rel=1e-12)
    assert scores.quality["accuracy"] == metrics.accuracy_score(y, predicted)
    assert scores.quality["f1"] == pytest.approx(metrics.f1_score(y, predicted, average=average), rel=1e-12)
    assert scores.quality["cross_entropy"] == pytest.approx(metrics.log_loss(y, p), rel=1e-12)
    if classes == 2:
        assert scores.quality["average_precision"] == pytest.approx(metrics.average_precision_score(y, p[:, 1]))
    recall = metrics.recall_score(y, predicted, average=None)
    assert scores.per_class == pytest.approx(dict(zip(names, recall)), rel=1e-12)
    assert scores.confusion is not None
    assert scores.confusion[0] == names
    assert (scores.confusion[1] == metrics.confusion_matrix(y, predicted)).all()
    both = softmax(teacher, -1), softmax(logits, -1)
    assert scores.fidelity["kl"] == pytest.approx(rel_entr(*both).sum(1).mean(), rel=1e-12)
    assert scores.fidelity["agreement"] == (teacher.argmax(1) == logits.argmax(1)).mean()


@settings(max_examples=15, deadline=None)
@given(cuts=cut)
def test_numbers_in_batches_score_as_scikit_learn_on_the_whole(cuts: list[int]) -> None:
    generator = np.random.default_rng(0)
    found, teacher, target = generator.normal(size=(3, SIZE, 2))
    known = generator.random(SIZE) < 0.8
    answer = Numbers(target_mean=(3.0, -50.0), target_std=(2.0, 10.0))
    tally = answer.tally()
    for part, batch in batches(np.zeros(SIZE, np.int64), known, cuts):
        batch = Batch(batch.inputs, torch.from_numpy(target[part]), batch.labelled)
        tally.add(batch, Outputs(torch.from_numpy(found[part])), Outputs(torch.from_numpy(teacher[part])))
    scores = tally.scores()
    std, mean = np.array([2.0, 10.0]), np.array([3.0, -50.0])
    y, p = target[known] * std + mean, found[known] * std + mean
    assert scores.quality["rmse"] == pytest.approx(np.sqrt(metrics.mean_squared_error(y, p)), rel=1e-12)
    assert scores.quality["mae"] == pytest.approx(metrics.mean_absolute_error(y, p), rel=1e-12)
    assert scores.quality["r2"] == pytest.approx(metrics.r2_score(y, p), rel=1e-12)
    apart = np.sqrt((((found - teacher) * std) ** 2).mean())
    assert scores.fidelity == {"rmse_to_teacher": pytest.approx(apart, rel=1e-12)}


def kept_bytes(classes: int, metric: str, size: int = 64, rounds: int = 12) -> int:
    """What a tally holds after some batches, as the allocator counts it."""
    tally = Classes(classes=tuple(map(str, range(classes))), metric_name=metric).tally()
    generator, gone = torch.Generator().manual_seed(0), []
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(rounds):
            logits = torch.randn(size, classes, generator=generator)
            batch = Batch({"student": torch.zeros(size)}, torch.arange(size) % classes)
            tally.add(batch, Outputs(logits), Outputs(logits + 1))
            gone.append(weakref.ref(logits))
            del logits, batch
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert [each() for each in gone] == [None] * rounds
    assert len(tally.scores().quality) >= 4
    return held


def test_what_is_kept_does_not_grow_with_the_classes() -> None:
    """Seven numbers of each sample at most: 12 batches of 64 take 43 kB, and with bookkeeping less than 100."""
    few, many = kept_bytes(3, "accuracy"), kept_bytes(2000, "accuracy")
    assert few < 100_000
    assert many < 100_000
    assert kept_bytes(64, "auc") > 12 * 64 * 64 * 8, "the area of many classes needs all of them, and the test sees it"


def test_nothing_labelled_is_no_quality_and_still_fidelity() -> None:
    logits, teacher, labels, _ = made(3)
    tally = Classes(classes=tuple("abc")).tally()
    for part, batch in batches(labels, np.zeros(SIZE, bool), [40]):
        tally.add(batch, Outputs(torch.from_numpy(logits[part])), Outputs(torch.from_numpy(teacher[part])))
    scores = tally.scores()
    assert (scores.quality, scores.per_class, scores.confusion) == ({}, {}, None)
    expected = (softmax(teacher, -1) * (log_softmax(teacher, -1) - log_softmax(logits, -1))).sum(1).mean()
    assert scores.fidelity["kl"] == pytest.approx(expected, rel=1e-12)
    with pytest.raises(DataError, match="no labelled sample"):
        Classes(classes=tuple("abc")).tally().scores()


def test_a_predictor_that_gives_no_logits_is_refused() -> None:
    with pytest.raises(RecipeError, match="gives no logits"):
        Classes(classes=("a", "b")).tally().add(Batch({"student": torch.zeros(1)}, torch.tensor([0])), Outputs())


def test_every_score_and_its_direction_is_known_beforehand() -> None:
    """What an early end may be ruled by: the names that tallies give, and which way of each is better."""
    best = {
        "accuracy": 1,
        "f1": 1,
        "auc": 1,
        "average_precision": 1,
        "r2": 1,
        "cross_entropy": -1,
        "taylor_cross_entropy": -1,
        "ece": -1,
        "mae": -1,
    }
    for classes in (2, 5):
        answer = RowClasses(classes=tuple("abcde"[:classes]), metric_name="auc")
        quality = counted(answer, [], classes).scores().quality
        assert next(iter(answer.metrics)) == next(iter(quality)) == "auc"
        assert set(quality) <= set(answer.metrics)
        assert all(better == ("max" if best[name] > 0 else "min") for name, better in answer.metrics.items())
    numbers = Numbers(target_mean=(0.0,), target_std=(1.0,))
    tally = numbers.tally()
    target = torch.arange(4.0).unsqueeze(1)
    tally.add(Batch({"student": target}, target), Outputs(target))
    assert set(tally.scores().quality) == set(numbers.metrics)
    assert numbers.metrics == {"rmse": "min", "mae": "min", "mse": "min", "r2": "max"}
