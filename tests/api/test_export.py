"""export of an artifact goes by its task: names, dynamic axes, real or made-up samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import decoct as dc
from api_toys import SHORT, Rows, Texts, loader, network, text_rows
from decoct.api.export import _write_quantized
from decoct.api.integers import Integers
from decoct.errors import RecipeError
from decoct.quantization.dynamic import Dynamic
from decoct.targets.onnx import graph
from shipped import one


def test_a_text_student_has_a_dynamic_length(tmp_path: Path) -> None:
    big, small = (network(width, 1, Texts, vocabulary=20) for width in (12, 4))
    train = DataLoader(Rows(text_rows(32, 0)), batch_size=8)
    found = dc.distill(big, small, train=train, task="text_classification", out=tmp_path / "run", **SHORT)
    rows = {name: torch.stack([each[name] for each in text_rows(5, 3)]) for name in ("input_ids", "attention_mask")}
    record = found.export(tmp_path / "small.onnx", example=rows)
    assert record["verified"]["samples"] == 5
    assert "made_up" not in record["verified"]
    real = found.export(tmp_path / "small.onnx")["verified"]
    assert (real["samples"], "made_up" in real) == (32, False)
    assert dc.export(found.artifact, tmp_path / "small.onnx", given=found._given)["verified"]["made_up"] is True
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    assert [each.shape for each in session.get_inputs()] == [["batch", "length"]] * 2
    ids = np.ones((3, 23), dtype=np.int64)
    [logits] = session.run(None, {"input_ids": ids, "attention_mask": ids})
    expected = found.student(torch.from_numpy(ids), torch.from_numpy(ids)).detach().numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    with pytest.raises(RecipeError, match="input_ids, attention_mask, not input_ids"):
        found.export(tmp_path / "other.onnx", example={"input_ids": rows["input_ids"]})
    assert not (tmp_path / "other.onnx").exists()


def test_a_regression_student_gives_values(tmp_path: Path) -> None:
    x = torch.randn(32, 4)
    found = dc.distill(
        nn.Linear(4, 1),
        nn.Linear(4, 1),
        train=loader(x, x.sum(1)),
        task="regression",
        objective=1.0 * dc.TaskLoss(),
        out=tmp_path / "run",
        epochs=1,
    )
    record = found.export(tmp_path / "small.onnx", example=x[:6])
    assert record["verified"]["samples"] == 6
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    assert [each.name for each in session.get_outputs()] == ["values"]
    with pytest.raises(RecipeError, match=r"features is torch\.float64"):
        found.export(tmp_path / "small.onnx", example=x.double())


def test_export_leaves_a_module_in_its_modes(tmp_path: Path) -> None:
    x = torch.randn(8, 4)
    module = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))
    module[2].eval()
    before = [each.training for each in module.modules()]
    dc.export(module, tmp_path / "a.onnx", example=x)
    assert [each.training for each in module.modules()] == before == [True, True, True, False]
    with pytest.raises(RecipeError):
        dc.export(module, tmp_path / "b.onnx", example=None)
    assert [each.training for each in module.modules()] == before


def test_a_quantized_model_is_written_after_what_it_needs(tmp_path: Path) -> None:
    module, x = nn.Linear(4, 2).eval(), torch.randn(3, 4)
    proto = graph(one(module, {"input": x}, {"input": {0: "batch"}}), opset=20)
    blocked = tmp_path / "model.tokenizer.json"
    blocked.mkdir()
    with pytest.raises(OSError, match="directory"):
        _write_quantized(
            tmp_path / "model.onnx",
            Integers(Dynamic(), False),
            proto,
            module,
            [{"input": x.numpy()}],
            None,
            assets={blocked: "{}"},
        )
    assert not (tmp_path / "model.onnx").exists()
