"""What a user's loader may yield, and what it may not."""

from typing import Any

import pytest
import torch
from task_toys import network
from torch import nn

from decoct.errors import DataError, RecipeError
from decoct.outputs import Needs
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.regression import Regression
from decoct.tasks.text_classification import TextClassification


def test_from_loader_takes_what_loaders_yield() -> None:
    task = ImageClassification(raw=True)
    x, z, y = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 5, 5), torch.tensor([0, 1, 1, 0])
    assert torch.equal(task.from_loader((x, y)).side("teacher"), x)
    three = task.from_loader([x, z, y.int()])
    assert torch.equal(three.side("teacher"), z)
    assert three.target.dtype == torch.int64
    assert torch.equal(task.from_loader({"image": x, "label": y}).side("student"), x)
    assert torch.equal(task.from_loader({"student": x, "teacher": z, "target": y}).side("teacher"), z)
    alone = task.from_loader([x])
    assert alone.labelled is not None
    assert not alone.labelled.any()
    assert task.answer.items(alone) == 0
    partly = task.from_loader((x, torch.tensor([0, -100, 1, -100])))
    assert partly.labelled.tolist() == [True, False, True, False]
    shaped = task.shaped_by(three, 7)
    assert shaped.classes == tuple("0123456")
    assert shaped.reading("student").interface.shape == (3, 2, 2)
    assert shaped.reading("teacher").example()["image"].shape == (2, 3, 5, 5)


def test_text_from_a_transformers_loader() -> None:
    task = TextClassification(raw=True)
    item = {
        "input_ids": torch.ones(2, 3, dtype=torch.int64),
        "attention_mask": torch.ones(2, 3),
        "labels": torch.tensor([0, 1]),
    }
    batch = task.from_loader(item)
    assert set(batch.side("student")) == {"input_ids", "attention_mask"}
    assert len(batch) == 2


def test_regression_from_a_loader() -> None:
    task = Regression(raw=True)
    batch = task.from_loader((torch.randn(3, 4), torch.tensor([1.0, float("nan"), 3.0])))
    assert batch.target.shape == (3, 1)
    assert batch.labelled.tolist() == [True, False, True]
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    outputs = task.forward(network(task, model), batch, Needs(), "student")
    assert outputs.logits.shape == (3, 1)
    expected = (outputs.logits[[0, 2], 0] - torch.tensor([1.0, 3.0])).square().mean()
    torch.testing.assert_close(task.answer.loss(outputs, batch), expected)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("text", "yields a str"),
        ((1, 2, 3, 4), "a tuple of 4"),
        ((torch.zeros(2, 3), torch.zeros(2)), r"target is torch.float32 \[2\]"),
        ((torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64)), "2 inputs with 3 targets"),
        ({"x": torch.zeros(2), "label": torch.tensor([0, 0]), "target": 1}, "both target and label"),
        ({"label": torch.tensor([0, 0])}, "and no inputs"),
        ({"a": torch.zeros(2), "b": torch.zeros(2), "label": torch.tensor([0, 0])}, "a mapping with a, b"),
    ],
)
def test_what_loaders_must_not_yield(item: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ImageClassification(raw=True).from_loader(item)


def test_labels_outside_the_classes() -> None:
    task = ImageClassification(raw=True, classes=("a", "b"))
    with pytest.raises(DataError, match=r"holds \[-3, 5\]; classes are 0 to 1"):
        task.from_loader((torch.zeros(3, 1), torch.tensor([5, -3, 1])))
