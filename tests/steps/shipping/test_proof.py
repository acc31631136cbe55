"""On every road to a file its float graph is compared with the model as it was trained and scored."""

from __future__ import annotations

import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import decoct as dc
from decoct.errors import IntegrityError
from decoct.models.base import Network
from decoct.models.mlp import MLP
from decoct.models.modes import as_in_training
from decoct.models.onnx_file import open_session
from decoct.outputs import Batch, Dense, Needs, Outputs
from decoct.quantization.weight_only import WeightOnly
from decoct.steps.base import Context
from decoct.steps.shipping.export import Export
from decoct.steps.shipping.proof import refuse_other_program
from decoct.steps.shipping.quantize import Quantize
from decoct.targets.openvino import OpenVINO
from decoct.targets.torch_export import TorchExport
from decoct.tasks.tabular_classification import TabularClassification

SCHEMES: list[Any] = [None, "int8", "dynamic", "weight_only", WeightOnly(bits=4)]
X = torch.randn(48, 8, generator=torch.Generator().manual_seed(0))
LABELS = (X[:, 0] > 0).long()


class Encoder(nn.Module):
    """Reads padded places too, as a mean over all of them does."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.words = nn.Embedding(20, width)
        layer = nn.TransformerEncoderLayer(width, 2, 32, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(width, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.encoder(self.words(input_ids), src_key_padding_mask=attention_mask == 0)
        return self.head(x.mean(1))


class OtherWhenTraced(nn.Module):
    """A graph of it is not the model."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(x if torch.compiler.is_exporting() else x.relu())


def texts(count: int = 12) -> dict[str, Tensor]:
    ids = torch.randint(1, 20, (count, 10), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(10) < torch.arange(count).remainder(8).add(3).unsqueeze(1)).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def made(kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind()


def as_trained(model: nn.Module, feed: dict[str, Tensor]) -> np.ndarray:
    """In train mode, where torch has no fast path; there is no dropout."""
    with torch.no_grad():
        return model.train()(**feed).numpy()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.filterwarnings("ignore")
def test_a_file_answers_as_the_model_in_training(tmp_path: Path, scheme: Any) -> None:
    model, feed = made(Encoder).eval(), texts()
    calibration = feed if scheme == "int8" else None
    dc.export(model, tmp_path / "m.onnx", example=feed, quantize=scheme, calibration=calibration)
    found = open_session(tmp_path / "m.onnx")({name: value.numpy() for name, value in feed.items()})["logits"]
    expected = as_trained(model, feed)
    signal = np.square(expected).sum() / np.square(found - expected).sum()
    assert 10 * np.log10(signal) > (80 if scheme is None else 12)
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_owner_is_told_of_the_fast_path(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="torch takes a fast path through the model's attention"):
        dc.export(made(Encoder), tmp_path / "m.onnx", example=texts())
    full = texts() | {"attention_mask": torch.ones(12, 10, dtype=torch.int64)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dc.export(made(Encoder), tmp_path / "m.onnx", example=full)


@pytest.mark.filterwarnings("ignore")
def test_models_are_scored_as_they_were_trained(tmp_path: Path) -> None:
    feed, labels = texts(), torch.arange(12) % 3
    rows = [{"input_ids": a, "attention_mask": b, "label": int(c)} for a, b, c in zip(*feed.values(), labels)]
    data = DataLoader(rows, batch_size=6)
    found = dc.distill(
        made(Encoder), made(Encoder), train=data, val=data, task="text_classification", out=tmp_path, epochs=1
    )
    logits = torch.from_numpy(as_trained(found.student, feed)).double()
    assert found.scores["cross_entropy"] == pytest.approx(float(F.cross_entropy(logits, labels)), abs=1e-5)
    assert found.export(tmp_path / "m.onnx")["verified"]["max_abs_diff"] < 1e-4


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_graph_that_is_not_the_model_becomes_no_file(tmp_path: Path, scheme: Any) -> None:
    before = "before it is quantized: " if scheme is not None else ""
    calibration = X if scheme == "int8" else None
    with pytest.raises(IntegrityError, match=f"{before}the file differs from torch by"):
        dc.export(made(OtherWhenTraced), tmp_path / "m.onnx", example=X, quantize=scheme, calibration=calibration)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A student of one's own, whose graph is another."""
    data = DataLoader(TensorDataset(X, LABELS), batch_size=16)
    return dc.distill(
        made(OtherWhenTraced),
        made(OtherWhenTraced),
        train=data,
        val=data,
        task="tabular_classification",
        out=tmp_path_factory.mktemp("run"),
        epochs=1,
    )


@pytest.mark.parametrize(
    "step",
    [
        Export(name="file"),
        Export(name="file", target=TorchExport()),
        Export(name="file", target=OpenVINO()),
        Quantize(name="file"),
        Quantize(name="file", scheme={"use": "dynamic"}),
        Quantize(name="file", scheme={"use": "weight_only"}),
    ],
)
def test_no_step_writes_a_graph_that_is_not_the_model(tmp_path: Path, other: Any, step: Any) -> None:
    if isinstance(step, Export) and isinstance(step.target, OpenVINO):
        pytest.importorskip("openvino")
    recipe = other.run.recipe
    context = Context(recipe.task, recipe.data.open(), "file", tmp_path / "file", tmp_path, 0, given=other._given)
    with pytest.raises(IntegrityError, match="the file differs from torch by"):
        step.run({"model": other.artifact}, context)
    assert not list(tmp_path.iterdir())
    with pytest.raises(IntegrityError, match="the file differs from torch by"):
        other.export(tmp_path / "m.onnx", quantize="dynamic")


def test_the_tolerance_of_a_quantized_file_is_that_of_its_float_graph(tmp_path: Path, other: Any) -> None:
    recipe = other.run.recipe
    context = Context(recipe.task, recipe.data.open(), "file", tmp_path / "file", tmp_path, 0, given=other._given)
    step = Quantize(name="file", scheme={"use": "dynamic"}, tolerance=100.0)
    assert step.run({"model": other.artifact}, context).json("exported.json")["verified"]["sqnr_db"] < 20
    assert "tolerance" not in Quantize(name="file").keyed()


class Doubled(MLP):
    """What it is taken to say is not what its network returns."""

    def run(self, module: nn.Module, inputs: Any, interface: Any, needs: Needs, target: Any = None) -> Outputs:
        return Outputs(Dense(2 * module(inputs)))


def test_a_program_is_compared_with_the_model_as_it_is_scored() -> None:
    task = TabularClassification(raw=True, shape=(8,), classes=("0", "1"))
    reading, spec = task.reading("student"), MLP(hidden=(4,))
    network = Network(spec.build(reading.interface).eval(), spec, reading.interface)
    program = reading.program(network.module).eval()
    batches = [Batch({"student": X, "teacher": X})]
    refuse_other_program("file", reading, network, program, batches, 1e-6)
    scored = 2 * network.module(X)
    worst = float((scored / 2).detach().abs().max())
    doubled = replace(network, spec=Doubled(hidden=(4,)))
    with pytest.raises(IntegrityError, match="differs from the model as it was scored"):
        refuse_other_program("file", reading, doubled, program, batches, 0.99 * worst)
    refuse_other_program("file", reading, doubled, program, batches, 1.01 * worst)


def test_a_file_with_more_noise_than_signal_is_warned_of(tmp_path: Path) -> None:
    """Calibrated on samples a hundred times smaller, its activations are cut off."""
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    with pytest.warns(UserWarning, match=r"dB of signal to noise beside the float model, below 20 dB"):
        record = dc.export(net, tmp_path / "a.onnx", example=X, quantize="int8", calibration=X / 100)
    assert record["verified"]["sqnr_db"] < 20
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*signal to noise")
        record = dc.export(net, tmp_path / "b.onnx", example=X, quantize="int8", calibration=X)
    assert record["verified"]["sqnr_db"] > 20


def test_the_fast_path_is_off_until_the_last_thread_is_done() -> None:
    inside, leave = threading.Barrier(2), threading.Event()

    def hold() -> None:
        with as_in_training():
            inside.wait()
            leave.wait()

    thread = threading.Thread(target=hold)
    with as_in_training():
        thread.start()
        inside.wait()
    assert not torch.backends.mha.get_fastpath_enabled()
    leave.set()
    thread.join()
    assert torch.backends.mha.get_fastpath_enabled()
