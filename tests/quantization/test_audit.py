"""The audit of real files: names of modules, what runs how, and the causes."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import decoct as dc
from decoct.quantization.audit import audit
from decoct.quantization.weight_only import WeightOnly

IMAGES = torch.randn(16, 3, 10, 10, generator=torch.Generator().manual_seed(0))


def cnn(activation: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), activation, nn.Conv2d(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_dynamic_leaves_convolutions_in_float_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    dc.export(cnn(nn.ReLU()), path, example=IMAGES, quantize="dynamic")
    found = audit(path)  # without the scheme's own notes
    assert [(each.layer, each.runs) for each in found.layers] == [
        ("0", "float"),
        ("3", "float"),
        ("7", "int8"),
        ("9", "int8"),
    ]
    assert {each.cause for each in found.layers if each.runs == "float"} == {
        "dynamic quantization leaves convolutions in float; use static"
    }


@pytest.mark.parametrize(
    ("activation", "name"), [(nn.Hardswish(), "HardSwish"), (nn.GELU(), "Gelu"), (nn.ReLU6(), ""), (nn.SiLU(), "")]
)
def test_activations_between_integer_layers_are_named_once(tmp_path: Path, activation: nn.Module, name: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net = cnn(activation).eval()
        record = dc.export(net, tmp_path / "net.onnx", example=IMAGES, quantize="int8", calibration=IMAGES)
    assert record["audit"]["between"] == ({name: 1} if name else {})
    told = [str(each.message) for each in caught if "integer layers" in str(each.message)]
    assert len(told) == bool(name)
    assert all(f"1 {name} in float" in each and "ReLU6" in each for each in told)


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [(WeightOnly(), 8), (WeightOnly(bits=4), 4), (WeightOnly(bits=4, form="dequantize"), 4)],
)
def test_weights_alone_in_integers_are_by_design(tmp_path: Path, scheme: WeightOnly, bits: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    record = dc.export(net, tmp_path / "net.onnx", example=torch.randn(8, 64), quantize=scheme)
    found = record["audit"]
    assert (found["int8"], found["weights"], found["float"]) == (0, 2, 0)
    assert [each["layer"] for each in found["layers"]] == ["0", "2"]
    assert {each["cause"] for each in found["layers"]} == {f"weights in int{bits}, arithmetic in float by design"}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("scheme", ["dynamic", "weight_only", "int8"])
def test_modules_keep_their_names_where_weights_lost_theirs(tmp_path: Path, scheme: str) -> None:
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    for each in net.parameters():
        each.data += 0.01 * torch.randn_like(each)
    x = torch.randn(4, 6, 32)
    calibration = {"calibration": x} if scheme == "int8" else {}
    record = dc.export(net, tmp_path / "net.onnx", example=x, quantize=scheme, **calibration)
    known = {name for name, _ in net.named_modules()}
    named = [each["layer"] for each in record["audit"]["layers"] if "activations" not in each["cause"]]
    assert len(named) == 4
    assert set(named) <= known
    assert np.isfinite(record["verified"]["sqnr_db"])
