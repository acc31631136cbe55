"""Dynamic and weight-only quantization: real files in ONNX Runtime against float and against NumPy."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import numpy_helper
from torch import nn

from decoct.errors import PathError, RecipeError
from decoct.models.base import Interface
from decoct.models.bilstm import BiLSTM
from decoct.models.onnx_file import open_session
from decoct.models.transformers import Transformers
from decoct.quantization.dynamic import Dynamic
from decoct.quantization.weight_only import WeightOnly
from decoct.quantization.weights import by_channel, grouped, packed, sqnr
from decoct.targets.onnx import graph, save
from shipped import one

TEXT = Interface(kind="text", shape=(12,), outputs=3, vocabulary=500, padding=0)
AXES = {name: {0: "batch", 1: "length"} for name in ("input_ids", "attention_mask")}
BERT = {
    "model_type": "bert",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}
SPECS = {"bert": Transformers(config=BERT), "bilstm": BiLSTM(embedding=48, hidden=32)}


class Program(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return outputs if isinstance(outputs, torch.Tensor) else outputs.logits


def feed(batch: int = 16, length: int = 11) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    mask = (np.arange(length) < random.integers(3, length + 1, (batch, 1))).astype(np.int64)
    return {"input_ids": random.integers(1, 500, (batch, length)) * mask, "attention_mask": mask}


@pytest.fixture(scope="module", params=list(SPECS))
def text(request: pytest.FixtureRequest) -> onnx.ModelProto:
    torch.manual_seed(0)
    model = SPECS[request.param].build(TEXT)
    with torch.no_grad():
        for each in model.parameters():
            if each.dim() == 1:
                each.add_(0.1 * torch.randn_like(each))
    example = {name: torch.from_numpy(value) for name, value in feed(2).items()}
    return graph(one(Program(model), example, AXES), opset=20)


def answers(proto: onnx.ModelProto, folder: Path, name: str) -> tuple[np.ndarray, int]:
    path = save(proto, folder / f"{name}.onnx")
    return open_session(path)(feed())["logits"], path.stat().st_size


def kinds(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


@pytest.mark.parametrize("per_channel", [True, False])
def test_dynamic_text_models_answer_alike_and_shrink(text: onnx.ModelProto, tmp_path: Path, per_channel: bool) -> None:
    before = text.SerializeToString()
    found = Dynamic(per_channel=per_channel).quantize(text, None, None)
    assert text.SerializeToString() == before
    exact, large = answers(text, tmp_path, "float")
    outputs, small = answers(found.graph, tmp_path, "int8")
    assert sqnr(exact, outputs) > 25
    assert small < 0.4 * large
    assert "DynamicQuantizeLSTM" in kinds(found.graph) or kinds(found.graph).count("MatMulInteger") == 14
    assert "LSTM" not in kinds(found.graph)
    assert "Gemm" not in kinds(found.graph)
    assert {each.after for each in found.changes if each.kind == "bits"} == {8}
    assert set(found.facts["weights_sqnr_db"]) == {each.path for each in found.changes}
    assert min(found.facts["weights_sqnr_db"].values()) > 30


def test_tables_are_what_makes_a_text_model_small(text: onnx.ModelProto, tmp_path: Path) -> None:
    whole = answers(Dynamic().quantize(text, None, None).graph, tmp_path, "with")[1]
    rest = answers(Dynamic(embeddings=False).quantize(text, None, None).graph, tmp_path, "without")[1]
    width = {tuple(each.dims) for each in text.graph.initializer if each.dims and each.dims[0] == 500}.pop()[1]
    assert rest - whole > 0.9 * 500 * (4 * width - width - 4)


def test_table_rows_are_those_of_numpy(text: onnx.ModelProto, tmp_path: Path) -> None:
    table = next(numpy_helper.to_array(each) for each in text.graph.initializer if list(each.dims)[:1] == [500])
    found = WeightOnly().quantize(text, None, None)
    held = {each.name: numpy_helper.to_array(each) for each in found.graph.graph.initializer}
    rows = next(value for name, value in held.items() if value.shape == table.shape and value.dtype == np.int8)
    scale = next(value for name, value in held.items() if value.shape == (500, 1))
    largest = np.abs(table).max(1, keepdims=True)
    assert np.abs(rows * scale - table).max() <= (largest / 127).max() * 0.5001
    zero = largest[:, 0] == 0
    assert np.array_equal(rows[zero], np.zeros_like(rows[zero]))


@pytest.mark.parametrize("form", ["matmul_nbits", "dequantize"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [32, 64, 128])
def test_four_bits_compute_what_numpy_computes(tmp_path: Path, form: str, symmetric: bool, block: int) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(128, 40), nn.ReLU(), nn.Linear(40, 6))
    proto, x = plain(model, 128)
    scheme = WeightOnly(bits=4, block_size=block, symmetric=symmetric, form=form, protect=("model.2",))
    found = scheme.quantize(proto, None, None)
    weight = model[0].weight.detach().numpy()
    low = grouped(weight, block, 4, symmetric=symmetric).floats()
    hidden = np.maximum(x @ low.T + model[0].bias.detach().numpy(), 0)
    expected = hidden @ model[2].weight.detach().numpy().T + model[2].bias.detach().numpy()
    path = save(found.graph, tmp_path / "int4.onnx")
    limit = 1e-4 if form == "matmul_nbits" else 3e-2  # the runtime may round activations of the other
    assert np.abs(open_session(path)({"input": x})["logits"] - expected).max() < limit
    assert path.stat().st_size < 0.6 * proto.ByteSize()
    assert [(each.path, each.after) for each in found.changes] == [("model.0", 4), ("model.2", 32)]


def test_eight_bits_compute_what_numpy_computes(tmp_path: Path) -> None:
    torch.manual_seed(1)
    proto, x = plain(nn.Sequential(nn.Linear(128, 200)), 128)
    weight = next(numpy_helper.to_array(each) for each in proto.graph.initializer if len(each.dims) == 2)
    bias = next(numpy_helper.to_array(each) for each in proto.graph.initializer if len(each.dims) == 1)
    scale = np.abs(weight).max(1, keepdims=True) / 127
    expected = x @ (np.rint(weight / scale) * scale).T + bias
    path = save(WeightOnly().quantize(proto, None, None).graph, tmp_path / "int8.onnx")
    assert np.abs(open_session(path)({"input": x})["logits"] - expected).max() < 1e-4
    assert path.stat().st_size < 0.3 * proto.ByteSize()


def test_dynamic_product_computes_what_numpy_computes(tmp_path: Path) -> None:
    torch.manual_seed(1)
    proto, x = plain(nn.Sequential(nn.Linear(64, 20)), 64)
    weight = next(numpy_helper.to_array(each) for each in proto.graph.initializer if len(each.dims) == 2)
    bias = next(numpy_helper.to_array(each) for each in proto.graph.initializer if len(each.dims) == 1)
    scale = np.abs(weight).max(1, keepdims=True) / 63
    low, high = min(x.min(), 0), max(x.max(), 0)
    step = (high - low) / 255
    zero = np.clip(np.rint(-low / step), 0, 255)
    q = np.clip(np.rint(x / step) + zero, 0, 255) - zero
    expected = (q @ np.rint(weight / scale).T) * step * scale.T + bias
    path = save(Dynamic(reduce_range=True).quantize(proto, None, None).graph, tmp_path / "int8.onnx")
    assert np.abs(open_session(path)({"input": x})["logits"] - expected).max() < 2e-3


def plain(model: nn.Module, width: int) -> tuple[onnx.ModelProto, np.ndarray]:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *, input: torch.Tensor) -> torch.Tensor:
            return self.model(input)

    x = np.random.default_rng(2).standard_normal((5, width)).astype(np.float32)
    example = {"input": torch.from_numpy(x)}
    return graph(one(Plain(), example, {"input": {0: "batch"}}), opset=20), x


def test_a_net_of_convolutions_is_refused_and_protection_that_names_nothing_too() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Conv2d(1, 2, 3)

        def forward(self, *, input: torch.Tensor) -> torch.Tensor:
            return self.model(input).mean((2, 3))

    proto = graph(one(Net(), {"input": torch.ones(2, 1, 8, 8)}, {"input": {0: "batch"}}), opset=20)
    for scheme in (Dynamic(), WeightOnly()):
        with pytest.raises(RecipeError, match="static"):
            scheme.quantize(proto, None, None)
    with pytest.raises(PathError, match=r"protect: no node or module 'modle'; did you mean model"):
        Dynamic(protect=("modle",)).quantize(proto, None, None)
    with pytest.raises(RecipeError, match="block_size belong"):
        WeightOnly(bits=8, block_size=64)


def test_protected_modules_stay(text: onnx.ModelProto) -> None:
    kept = "model.head" if "LSTM" in kinds(text) else "model.classifier"
    found = Dynamic(protect=(kept,)).quantize(text, None, None)
    assert [each.note for each in found.changes if each.path == kept] == ["protected"]
    assert kinds(found.graph).count("Gemm") == 1


numbers = arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 70)), elements=st.floats(-8, 8, width=32))


@settings(deadline=None, max_examples=60)
@given(numbers, st.sampled_from([32, 64]), st.sampled_from([4, 8]), st.booleans())
def test_groups_are_within_half_a_step_and_keep_zero(
    weights: np.ndarray, block: int, bits: int, symmetric: bool
) -> None:
    found = grouped(weights, block, bits, symmetric=symmetric)
    steps = np.repeat(found.scales, block, axis=1)[:, : weights.shape[1]]
    slack = 1.01 if not symmetric else 0.51  # rounding the zero point may move a range by half a step more
    assert (np.abs(found.floats() - weights) <= slack * steps + 1e-6).all()
    assert (found.floats()[weights == 0] == 0).all()
    assert found.values.max() < 2**bits


@settings(deadline=None)
@given(arrays(np.float32, (3, 5), elements=st.floats(-1e3, 1e3, width=32)), st.sampled_from([0, 1, None]))
def test_channels_are_within_half_a_step(weights: np.ndarray, axis: int | None) -> None:
    values, scales = by_channel(weights, axis)
    assert (np.abs(values * scales - weights) <= 0.5001 * scales + 1e-6).all()


@given(arrays(np.uint8, st.integers(1, 9), elements=st.integers(0, 15)))
def test_packing_keeps_both_halves(values: np.ndarray) -> None:
    found = packed(values)
    assert np.array_equal(np.stack([found & 15, found >> 4], 1).reshape(-1)[: len(values)], values)
