"""What a text model is given in training is what its file takes, or the export is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import decoct as dc
from api_toys import Rows, network
from decoct.errors import RecipeError
from decoct.steps.base import Context
from decoct.steps.shipping.export import Export
from decoct.steps.shipping.quantize import Quantize
from decoct.tasks.text_classification import TextClassification

LEARN: dict[str, Any] = {"epochs": 4, "optimizer": dc.AdamW(lr=0.1), "batch_size": 16}
WORDS = 20


class Segments(nn.Module):
    """The mean of the embeddings of ids, of what segment each is in, and of two further numbers of each text."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words, self.segments = nn.Embedding(WORDS, width), nn.Embedding(2, width)
        self.numbers, self.head = nn.Linear(2, width), nn.Linear(width, 2)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        numbers: Tensor | None = None,
        note: Any = None,
    ) -> Tensor:
        x = self.words(input_ids)
        x = x if token_type_ids is None else x + self.segments(token_type_ids)
        counted = attention_mask.unsqueeze(-1).to(x.dtype)
        x = (x * counted).sum(1) / counted.sum(1)
        return self.head(x if numbers is None else x + self.numbers(numbers))


class ByPosition(nn.Module):
    """One tensor of ids, by whatever name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words(x).mean(1))


def rows(count: int, *further: str) -> list[dict[str, Any]]:
    """Texts whose class nothing but their segment tells."""
    drawn = np.random.default_rng(0)
    found = []
    for _ in range(count):
        label = int(drawn.integers(2))
        row: dict[str, Any] = {
            "input_ids": torch.from_numpy(drawn.integers(0, WORDS, 6)),
            "attention_mask": torch.ones(6, dtype=torch.int64),
            "token_type_ids": torch.full((6,), label),
            "numbers": torch.from_numpy(drawn.normal(size=2).astype(np.float32)),
        }
        names = ("input_ids", "attention_mask", *further)
        found.append({name: row[name] for name in names} | {"label": label})
    return found


def batches(count: int, *further: str) -> DataLoader:
    return DataLoader(Rows(rows(count, *further)), batch_size=16)


def distilled(folder: Path, *further: str, kind: type[nn.Module] = Segments) -> Any:
    return dc.distill(
        network(4, 1, kind),
        network(4, 2, kind),
        train=batches(96, *further),
        val=batches(40, *further),
        task="text_classification",
        objective=1.0 * dc.CrossEntropy(),
        out=folder,
        **LEARN,
    )


def in_float64(module: nn.Module, feed: dict[str, np.ndarray]) -> np.ndarray:
    """What `Segments` says, in NumPy."""
    weights = {name: value.double().numpy() for name, value in module.state_dict().items()}
    x = weights["words.weight"][feed["input_ids"]]
    if "token_type_ids" in feed:
        x = x + weights["segments.weight"][feed["token_type_ids"]]
    counted = feed["attention_mask"][..., None]
    x = (x * counted).sum(1) / counted.sum(1)
    if "numbers" in feed:
        x = x + feed["numbers"] @ weights["numbers.weight"].T + weights["numbers.bias"]
    return x @ weights["head.weight"].T + weights["head.bias"]


@pytest.mark.parametrize("further", [("token_type_ids",), ("numbers", "token_type_ids")])
def test_a_file_takes_every_input_of_training(tmp_path: Path, further: tuple[str, ...]) -> None:
    found = distilled(tmp_path / "run", *further)
    assert found.scores["accuracy"] == 1.0
    record = found.export(tmp_path / "small.onnx")
    assert record["verified"]["samples"] == 40
    assert "made_up" not in record["verified"]
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    shapes = {each.name: each.shape for each in session.get_inputs()}
    assert set(shapes) == {"input_ids", "attention_mask", *further}
    assert shapes["token_type_ids"] == ["batch", "length"]
    assert shapes.get("numbers", ["batch", 2]) == ["batch", 2]
    samples = rows(40, *further)
    feed = {name: np.stack([each[name].numpy() for each in samples]) for name in shapes}
    [logits] = session.run(None, feed)
    np.testing.assert_allclose(logits, in_float64(found.student, feed), atol=1e-4)
    assert (logits.argmax(1) == [each["label"] for each in samples]).mean() == found.scores["accuracy"]
    longer = {"input_ids": np.ones((3, 9), np.int64), "attention_mask": np.ones((3, 9), np.int64)}
    longer |= {"token_type_ids": np.zeros((3, 9), np.int64), "numbers": np.ones((3, 2), np.float32)}
    longer = {name: value for name, value in longer.items() if name in shapes}
    np.testing.assert_allclose(session.run(None, longer)[0], in_float64(found.student, longer), atol=1e-4)


def test_files_in_integers_take_them_too(tmp_path: Path) -> None:
    found = distilled(tmp_path / "run", "token_type_ids")
    record = found.export(tmp_path / "small.onnx", quantize="int8", calibration=batches(32, "token_type_ids"))
    assert record["verified"]["samples"] == 40
    assert record["verified"]["agreement"] == 1.0
    names = [each.name for each in onnxruntime.InferenceSession(tmp_path / "small.onnx").get_inputs()]
    assert set(names) == {"input_ids", "attention_mask", "token_type_ids"}
    with pytest.raises(RecipeError, match="no 'token_type_ids', which the model was trained with"):
        found.export(tmp_path / "other.onnx", quantize="int8", calibration=batches(32))
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.parametrize("step", [Export(name="file"), Quantize(name="file")])
def test_a_task_that_knows_of_no_further_input_refuses_it_by_name(tmp_path: Path, step: Any) -> None:
    """As in a recipe of one's own, whose task was not shaped by the loaders."""
    found = distilled(tmp_path / "run", "token_type_ids")
    task = TextClassification(raw=True, classes=("0", "1"))
    data = found.run.recipe.data.open()
    context = Context(task, data, "file", tmp_path / "file", tmp_path / "work", seed=0, given=found._given)
    with pytest.raises(RecipeError, match="'token_type_ids' too, which the file would not take"):
        step.run({"model": found.artifact}, context)
    assert not (tmp_path / "file").exists()


def test_what_no_file_takes_is_named(tmp_path: Path) -> None:
    class Noted(Rows):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {**super().__getitem__(index), "note": "text"}

    train = DataLoader(Noted(rows(32, "token_type_ids")), batch_size=16)
    pair = [network(4, seed, Segments) for seed in (1, 2)]
    found = dc.distill(*pair, train=train, task="text_classification", out=tmp_path / "run", epochs=1)
    with pytest.raises(RecipeError, match="trained with 'note', of type list, which no exported file takes"):
        found.export(tmp_path / "small.onnx")


def test_one_tensor_by_position(tmp_path: Path) -> None:
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, WORDS, (32, 5)))
    train = DataLoader([(row, int(row.sum()) % 2) for row in ids], batch_size=16)
    pair = [network(4, seed, ByPosition) for seed in (1, 2)]
    found = dc.distill(*pair, train=train, task="text_classification", out=tmp_path / "run", epochs=1)
    assert found.export(tmp_path / "small.onnx")["verified"]["samples"] == 32
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    assert [(each.name, each.shape) for each in session.get_inputs()] == [("input_ids", ["batch", "length"])]
    expected = found.student(ids[:, :4]).detach().numpy()
    np.testing.assert_allclose(session.run(None, {"input_ids": ids[:, :4].numpy()})[0], expected, atol=1e-5)


def test_calibration_data_may_not_hold_an_input_that_the_example_leaves_out(tmp_path: Path) -> None:
    [first] = batches(16, "token_type_ids")
    example = {name: first[name] for name in ("input_ids", "attention_mask")}
    calibration = [first]
    with pytest.raises(RecipeError, match="gives token_type_ids too, which the model takes and example leaves out"):
        dc.export(Segments(4), tmp_path / "a.onnx", example=example, quantize="int8", calibration=calibration)
    example["token_type_ids"] = first["token_type_ids"]
    dc.export(Segments(4), tmp_path / "a.onnx", example=example, quantize="int8", calibration=calibration)
