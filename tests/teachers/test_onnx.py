"""Onnx and Estimator teachers from files: exported artifacts and foreign files answer; what cannot work is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from decoct.data.digits import Digits
from decoct.errors import IntegrityError, RecipeError
from decoct.models.given import plain_network
from decoct.outputs import Batch, Needs
from decoct.targets.onnx import Onnx as Target
from decoct.tasks.image_classification import ImageClassification
from decoct.teachers.onnx import OnnxTeacher
from shipped import written


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1))


@pytest.fixture(scope="module")
def task() -> ImageClassification:
    return ImageClassification().resolve(Digits().open())


@pytest.fixture(scope="module")
def batch(task: ImageClassification) -> Batch:
    return task.collate(Digits().open().splits["test"], np.arange(9))


@pytest.fixture(scope="module")
def model() -> Plain:
    torch.manual_seed(0)
    return Plain().eval()


def answer(teacher: OnnxTeacher, path: Path, task: ImageClassification, batch: Batch) -> torch.Tensor:
    with teacher.open(path, task.reading("teacher"), Needs()) as predict:
        logits = predict(batch).logits
    assert logits is not None
    return logits


def expected(model: Plain, task: ImageClassification, batch: Batch) -> np.ndarray:
    with torch.no_grad():
        return task.forward(plain_network(model, "image"), batch, Needs(), "teacher").logits.numpy()


def test_a_file_with_preprocessing(tmp_path: Path, task: ImageClassification, batch: Batch, model: Plain) -> None:
    path = Target().write(task.reading("teacher").programs(model), tmp_path)["model"]
    logits = answer(OnnxTeacher(), path, task, batch)
    np.testing.assert_allclose(logits.numpy(), expected(model, task, batch), atol=1e-5)
    assert not logits.requires_grad
    (logits.requires_grad_() ** 2).sum().backward()


def test_a_foreign_file_takes_what_a_model_takes(
    tmp_path: Path, task: ImageClassification, batch: Batch, model: Plain
) -> None:
    path = written(Target(), model, {"x": torch.zeros(2, 1, 8, 8)}, tmp_path, {"x": {0: "batch"}}, output="scores")
    with pytest.raises(RecipeError, match="preprocessed: true"):
        answer(OnnxTeacher(), path, task, batch)
    logits = answer(OnnxTeacher(preprocessed=True), path, task, batch)
    np.testing.assert_allclose(logits.numpy(), expected(model, task, batch), atol=1e-5)
    with pytest.raises(RecipeError, match="scores"):
        answer(OnnxTeacher(output="score"), path, task, batch)


def test_a_changed_or_missing_file(tmp_path: Path, task: ImageClassification, batch: Batch, model: Plain) -> None:
    path = Target().write(task.reading("teacher").programs(model), tmp_path)["model"]
    with (
        pytest.raises(IntegrityError, match="changed while it taught"),
        OnnxTeacher().open(path, task.reading("teacher"), Needs()),
    ):
        path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(IntegrityError, match="missing"):
        answer(OnnxTeacher(), tmp_path / "none.onnx", task, batch)


@pytest.mark.parametrize(
    ("needs", "words"), [(Needs(frozenset({"layer1"})), "layer1"), (Needs(gradient=True), "gradients")]
)
def test_what_a_file_cannot_give(tmp_path: Path, task: ImageClassification, needs: Needs, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        OnnxTeacher().open(tmp_path / "any.onnx", task.reading("teacher"), needs)


def test_a_module_is_no_file(task: ImageClassification, model: Plain) -> None:
    with pytest.raises(RecipeError, match="Plain"):
        OnnxTeacher().open(model, task.reading("teacher"), Needs())


def test_a_file_of_probabilities_is_refused(
    tmp_path: Path, task: ImageClassification, batch: Batch, model: Plain
) -> None:
    soft = nn.Sequential(model, nn.Softmax(dim=-1))
    path = Target().write(task.reading("teacher").programs(soft), tmp_path)["model"]
    with pytest.raises(RecipeError, match=r"answers with probabilities .*raw_scores"):
        answer(OnnxTeacher(), path, task, batch)
