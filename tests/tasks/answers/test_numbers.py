"""Numbers: scores in the target's own units, statistics of labelled samples."""

import numpy as np
import pytest
import torch

from decoct.data.base import Dataset
from decoct.data.sources import ordered
from decoct.outputs import Batch, Outputs
from decoct.tasks.regression import Regression


def test_regression_scores_in_the_units_of_the_target(numbers: Dataset) -> None:
    task = Regression().resolve(numbers)
    test = numbers.splits["test"]
    truth = test.columns["value"]
    guess = truth + np.random.default_rng(0).normal(0, 1e4, len(truth))

    def predict(batch: Batch) -> Outputs:
        places = [int(np.flatnonzero(test.keys == key)[0]) for key in batch.keys]
        return Outputs(torch.from_numpy((guess[places] - task.target_mean[0]) / task.target_std[0])[:, None])

    scores = task.score(predict, ordered(test, task.collate, 7))
    assert scores["rmse"] == pytest.approx(np.sqrt(((guess - truth) ** 2).mean()), rel=1e-6)
    assert scores["mae"] == pytest.approx(np.abs(guess - truth).mean(), rel=1e-6)
    assert scores["r2"] == pytest.approx(
        1 - ((guess - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum(), rel=1e-5
    )
    zero = lambda batch: Outputs(torch.zeros(len(batch), 1))  # noqa: E731
    distance = task.tallied(predict, ordered(test, task.collate, 7), zero).fidelity["rmse_to_teacher"]
    assert distance == pytest.approx(np.sqrt(((guess - task.target_mean[0]) ** 2).mean()), rel=1e-6)


def test_regression_statistics_come_from_labelled_samples(numbers: Dataset) -> None:
    task = Regression().resolve(numbers)
    train = numbers.splits["train"]
    known = train.columns["value"][train.labelled]
    assert len(known) == 30
    assert task.target_mean == (known.mean(),)
    assert task.target_std == (known.std(),)
