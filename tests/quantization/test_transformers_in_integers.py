"""Transformers without positions, whole and with fewer heads, in integers: real files, run again."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import decoct as dc
from decoct.models.onnx_file import open_session

IDS = torch.randint(0, 60, (8, 12), generator=torch.Generator().manual_seed(0))


class Reader(nn.Module):
    """Ids to classes, the embedding straight into an encoder."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.table = nn.Embedding(60, width)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True), 2)
        self.head = nn.Linear(width, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(self.table(ids)).mean(1))


@pytest.fixture(scope="module")
def reader() -> nn.Module:
    torch.manual_seed(0)
    made = Reader().eval()
    for each in made.parameters():  # a trained network has no two equal tensors
        each.data += 0.02 * torch.randn_like(each)
    return made


@pytest.fixture(scope="module")
def pruned(reader: nn.Module) -> nn.Module:
    return dc.prune(reader, example=IDS, scheme=dc.Heads(ratio=0.5))


def run(path: Path) -> np.ndarray:
    return open_session(path)({"input": IDS.numpy()})["logits"]


@pytest.mark.parametrize("scheme", ["channels", "heads"])
def test_a_table_that_feeds_a_layer_is_quantized_in_order(
    tmp_path: Path, reader: nn.Module, pruned: nn.Module, scheme: str
) -> None:
    model = pruned if scheme == "heads" else dc.prune(reader, example=IDS)
    path = tmp_path / "reader.onnx"
    record = dc.export(model, path, example=IDS, quantize="int8", calibration=IDS)
    onnx.checker.check_model(str(path), full_check=True)
    assert record["audit"]["int8"] >= 9
    with torch.no_grad():
        expected = model(IDS).numpy()
    assert np.abs(run(path) - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("scheme", ["dynamic", "weight_only"])
def test_weights_that_are_split_at_run_time_become_integers(tmp_path: Path, pruned: nn.Module, scheme: str) -> None:
    path = tmp_path / "reader.onnx"
    with pytest.warns(UserWarning, match="float"):
        record = dc.export(pruned, path, example=IDS, quantize=scheme)
    graph = onnx.load(str(path)).graph
    assert not [node for node in graph.node if node.op_type == "Split"]
    largest = max(int(np.prod(each.dims)) for each in graph.initializer if each.data_type == onnx.TensorProto.FLOAT)
    assert largest <= 128  # biases, norms and scales
    assert record["file_bytes"] < 0.5 * record["float_bytes"]
    paths = {each["path"] for each in record["quantization"]["changes"]}
    assert {f"model.encoder.layers.1.self_attn.in_proj.{part}" for part in range(3)} <= paths
    with torch.no_grad():
        expected = pruned(IDS).numpy()
    assert np.abs(run(path) - expected).max() < 0.05 * np.abs(expected).max()
