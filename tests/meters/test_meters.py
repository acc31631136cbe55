"""Meters against closed forms: counts, quantiles, bytes, memory of a file whose weights have a known size."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from decoct.errors import ResourceError
from decoct.meters.latency import measure, summary
from decoct.meters.machine import machine
from decoct.meters.macs import macs
from decoct.meters.memory import peak_memory
from decoct.meters.parameters import parameters
from decoct.meters.size import file_bytes
from decoct.models.clustered import ClusteredLinear, pack


class Call(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def lstm_macs(length: int, inputs: int, hidden: int, directions: int) -> int:
    return length * directions * 4 * hidden * (inputs + hidden)


def attention_macs(length: int, width: int) -> int:
    return 4 * length * width * width + 2 * length * length * width


@pytest.mark.parametrize(
    ("module", "x", "expected"),
    [
        (nn.Linear(5, 7), torch.zeros(1, 5), 35),
        (nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 10, 12), 8 * 3 * 9 * 120),
        (nn.Conv2d(8, 8, 3, groups=8, stride=2, padding=1), torch.zeros(1, 8, 10, 10), 8 * 9 * 25),
        (nn.LSTM(4, 6, batch_first=True, bidirectional=True), torch.zeros(1, 7, 4), lstm_macs(7, 4, 6, 2)),
        (nn.GRU(4, 6, batch_first=True), torch.zeros(1, 7, 4), 7 * 3 * 6 * (4 + 6)),
        (
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            torch.zeros(1, 7, 8),
            attention_macs(7, 8) + 2 * 7 * 8 * 16,
        ),
    ],
)
def test_macs_equal_the_closed_form(module: nn.Module, x: torch.Tensor, expected: int) -> None:
    module = Call(module).train()
    counted = macs(module, {"x": x})
    assert counted.total == expected
    assert all(each.training for each in module.modules()), "the module keeps its mode"
    assert torch.backends.mkldnn.enabled
    assert torch.backends.mha.get_fastpath_enabled()


def test_macs_by_module_and_type_add_up() -> None:
    counted = macs(Call(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))), {"x": torch.zeros(1, 3)})
    assert counted.by_module == {"body": 20, "body.0": 12, "body.2": 8}
    assert counted.by_type == {"Linear": 20}


def test_parameters_of_a_codebook_are_the_weights_it_stands_for() -> None:
    layer = nn.Linear(6, 4)
    centroids = nn.Parameter(torch.tensor([0.0, 1.0]))
    codes = torch.tensor([0, 1] * 12)
    made = ClusteredLinear(layer, pack(codes, 1), centroids, 1)
    count = parameters(nn.Sequential(made, made, nn.ReLU()))
    assert (count.total, count.trainable) == (6 * 4 + 4, 2 + 4)
    assert count.nonzero == 12 + int(layer.bias.count_nonzero())


def test_parameters_count_shared_ones_once() -> None:
    first = nn.Linear(3, 3)
    model = nn.Sequential(first, first, nn.BatchNorm1d(3))
    model[2].requires_grad_(False)
    assert (parameters(model).total, parameters(model).trainable) == (12 + 6, 12)


@given(st.lists(st.lists(st.integers(1, 10**9), min_size=1, max_size=20), min_size=1, max_size=10))
def test_summary_gives_the_quantiles_of_all_calls(rounds: list[list[int]]) -> None:
    every = np.array([taken for each in rounds for taken in each]) / 1e6
    found = summary([np.array(each, dtype=float) for each in rounds])
    assert found.repeats == len(every)
    assert found.p50_ms == pytest.approx(np.percentile(every, 50))
    assert found.p99_ms == pytest.approx(np.percentile(every, 99))
    assert found.min_ms == every.min()
    assert found.min_ms <= found.p50_ms <= found.p99_ms
    assert found.mean_ms == pytest.approx(every.mean())


def test_noise_is_flagged_with_its_reason() -> None:
    quiet = [np.full(20, 1e6) for _ in range(10)]
    assert not summary(quiet).noisy
    slow_half = [np.full(20, 1e6 if i < 5 else 2e6) for i in range(10)]
    assert summary(slow_half).noisy
    assert "medians" in summary(slow_half).reason
    spikes = [np.r_[np.full(19, 1e6), 5e7] for _ in range(10)]
    assert "p99" in summary(spikes).reason


def test_candidates_are_interleaved_and_turn() -> None:
    calls: list[str] = []
    found = measure({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=7, warmup=2, rounds=3)
    assert "".join(calls) == "aabb" + "aaabbb" + "bbaa" + "aabb"
    assert found["a"].repeats == found["b"].repeats == 7


def test_time_limit_keeps_at_least_one_round() -> None:
    assert measure({"a": lambda: None}, repeats=50, warmup=0, seconds=0.0, rounds=5)["a"].repeats == 10


def test_machine_is_stable_json() -> None:
    assert json.dumps(machine(), sort_keys=True) == json.dumps(machine(), sort_keys=True)
    assert machine()["memory_bytes"] > 2**20
    assert machine()["versions"]["torch"] == torch.__version__.partition("+")[0]


def write_add(path: Path, numbers: int) -> Path:
    weights = np.arange(numbers, dtype=np.float32)
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [numbers]) for name in ("x", "y")]
    node = helper.make_node("Add", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "add", ports[:1], ports[1:], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def test_peak_memory_grows_by_the_weights(tmp_path: Path) -> None:
    numbers = 10_000_000
    large = peak_memory(write_add(tmp_path / "large.onnx", numbers), {"x": np.zeros(numbers, np.float32)})
    small = peak_memory(write_add(tmp_path / "small.onnx", 10), {"x": np.zeros(10, np.float32)})
    assert 0 < small < 20_000_000
    assert 4 * numbers * 1.5 < large < 4 * numbers * 6


def test_peak_memory_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"none\.onnx"):
        peak_memory(tmp_path / "none.onnx", {})


def test_file_bytes_of_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "sub" / "b").write_bytes(b"4567")
    assert (file_bytes(tmp_path / "a"), file_bytes(tmp_path)) == (3, 7)


@pytest.mark.parametrize(("slower", "noisy"), [(4.8, False), (5.0, False), (5.1, True)])
def test_rounds_may_differ_by_a_quarter_of_the_median_and_no_more(slower: float, noisy: bool) -> None:
    """Medians 4, 4, 4, s, s: quartiles 4 and s, so the spread is (s - 4) / 4."""
    found = summary([np.full(3, each * 1e6) for each in (4.0, 4.0, 4.0, slower, slower)])
    assert (found.noisy, "medians" in found.reason) == (noisy, noisy)


@pytest.mark.parametrize(("slow", "noisy"), [(4.5, False), (5.0, False), (5.5, True)])
def test_the_tail_may_be_five_times_the_median_and_no_longer(slow: float, noisy: bool) -> None:
    """Of 101 calls the 100th is the 99th percentile."""
    found = summary([np.r_[np.full(99, 1e6), slow * 1e6, slow * 1e6]])
    assert (found.p50_ms, found.p99_ms) == (1.0, slow)
    assert (found.noisy, "p99" in found.reason) == (noisy, noisy)
