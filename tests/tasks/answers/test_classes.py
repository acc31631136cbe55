"""Classes: the loss against torch's, the main metric, and what is counted."""

import numpy as np
import torch
from torch import nn

from decoct.data.base import Dataset
from decoct.data.sources import ordered
from decoct.outputs import Batch, Outputs
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.tabular_classification import TabularClassification


def test_classification_loss_is_bitwise_torchs(images: Dataset) -> None:
    task = ImageClassification().resolve(images)
    batch = task.collate(images.splits["test"], np.arange(33))
    logits = torch.randn(33, 4, requires_grad=True)
    other = logits.detach().clone().requires_grad_()
    ours = task.answer.loss(Outputs(logits), batch)
    theirs = nn.functional.cross_entropy(other, batch.target)
    ours.backward()
    theirs.backward()
    assert torch.equal(ours, theirs)
    assert torch.equal(logits.grad, other.grad)


def test_scores_count_labelled_samples_only(images: Dataset) -> None:
    task = ImageClassification().resolve(images)
    train = images.splits["train"]
    truth = train.columns["label"]

    def right(batch: Batch) -> Outputs:
        places = [int(np.flatnonzero(train.keys == key)[0]) for key in batch.keys]
        return Outputs(torch.nn.functional.one_hot(torch.from_numpy(truth[places]), 4).float())

    names, matrix = task.tallied(right, ordered(train, task.collate, 16)).confusion
    assert names == ("a", "b", "c", "d")
    assert matrix.sum() == train.labelled.sum() == 20
    assert (matrix == np.diag([5, 5, 5, 5])).all()
    assert task.score(right, ordered(train, task.collate, 16))["accuracy"] == 1.0
    assert task.tallied(right, ordered(train, task.collate, 16)).per_class == dict.fromkeys("abcd", 1.0)


def test_tabular_main_metric(table: Dataset) -> None:
    assert TabularClassification().resolve(table).metric == ("auc", "max")
    assert TabularClassification(metric_name="f1").resolve(table).metric == ("f1", "max")
