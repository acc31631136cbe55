"""What a given model raises on a batch is told with side, step, batch, shape, type and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import decoct as dc
from decoct.errors import ForwardFailed, RecipeError
from decoct.models.failures import described, telling

TASK = "tabular_classification"


def net(width: int = 8, inputs: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


def batches(*sizes: int, inputs: int = 4, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(size, inputs).to(dtype), torch.randint(0, 3, (size,))) for size in sizes]


def distilled(folder: Path, teacher: nn.Module, student: nn.Module, data: Any, **settings: Any) -> None:
    dc.distill(teacher, student, data, out=folder, **{"task": TASK, "epochs": 2, "select": "last", **settings})


def test_a_last_batch_of_one_with_batch_norm(tmp_path: Path) -> None:
    with pytest.raises(ForwardFailed) as found:
        distilled(tmp_path, net(), net(), batches(8, 8, 1))
    text = str(found.value)
    assert "step 3, batch 2 of epoch 0" in text
    assert "the student (Sequential, in training mode) failed on a batch of float32 [1, 4]" in text
    assert "more than 1 value per channel" in text
    assert "drop_last=True" in text
    assert isinstance(found.value.__cause__, ValueError)


def test_types_that_differ(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as found:
        distilled(tmp_path, net().double(), net(), batches(8))
    text = str(found.value)
    assert "the teacher (Sequential, in eval mode) failed on a batch of float32 [8, 4]" in text
    assert "its parameters are float64, the batch is float32" in text


def test_types_that_change_later(tmp_path: Path) -> None:
    data = batches(8) + batches(6, dtype=torch.float64)
    with pytest.raises(
        RecipeError, match=r"step 2, batch 1 of epoch 0: the teacher .* float64 \[6, 4\].*x\.to\(torch\."
    ):
        distilled(tmp_path, net(), net(), data)


def test_shapes_that_differ(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"the student .* float32 \[8, 4\]: RuntimeError: .*mat1.*another shape"):
        distilled(tmp_path, net(), net(inputs=5), batches(8))


def test_a_validation_batch_that_differs(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"validation after step \d: the student .* \[8, 5\].*another shape"):
        distilled(tmp_path, net(), net(), batches(8), val=batches(8, inputs=5))


def test_ids_beyond_the_table(tmp_path: Path) -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(10, 4), nn.Linear(4, 2)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.head(self.table(input_ids).mean(1))

    ids = torch.tensor([[1, 2], [3, 12]])
    data = [({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.tensor([0, 1]))]
    with pytest.raises(RecipeError, match=r"input_ids int64 \[2, 2\].*largest id of the batch is 12.* hold 10"):
        distilled(tmp_path, Text(), Text(), data, task="text_classification")


def test_arguments_that_are_not_taken(tmp_path: Path) -> None:
    class Two(nn.Linear):
        def forward(self, x: Tensor, length: Tensor) -> Tensor:
            return super().forward(x)

    with pytest.raises(RecipeError, match=r"TypeError.*'length'.*wrap it in a module"):
        distilled(tmp_path, net(), Two(4, 3), batches(8))


@pytest.mark.parametrize("error", [KeyError("a"), ZeroDivisionError("by zero"), AttributeError("no b"), IndexError()])
def test_whatever_code_raises_is_told(error: Exception) -> None:
    with (
        pytest.raises(ForwardFailed, match=rf"the peer \(Linear.* {type(error).__name__}"),
        telling(nn.Linear(1, 1), "peer", torch.ones(1, 1)),
    ):
        raise error


def test_errors_of_memory_and_interrupts_pass() -> None:
    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("can't allocate memory: 8 GB"),
        SystemExit(),
    ):
        with pytest.raises(type(error)) as found, telling(nn.Linear(1, 1), "student", torch.ones(1, 1)):
            raise error
        assert found.value is error


def test_batches_in_words() -> None:
    assert described([torch.ones(3, 2, 2), torch.ones(3, 1, 1)]) == "float32 [3, 2, 2], float32 [3, 1, 1]"
    assert described("text") == "type str"
