"""dc.export in integers: modules, artifacts, calibration data of all kinds, errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import decoct as dc
from decoct.artifact import Artifact, writing
from decoct.data.digits import Digits
from decoct.errors import DataError, RecipeError
from decoct.models.onnx_file import open_session
from decoct.models.saving import save_model
from decoct.models.small_resnet import SmallResNet
from decoct.quantization.static import Static
from decoct.tasks.image_classification import ImageClassification

IMAGES = torch.randn(300, 3, 10, 10, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4)).eval()


def test_a_module_in_integers(tmp_path: Path, net: nn.Module) -> None:
    path = tmp_path / "small.onnx"
    loader = DataLoader(TensorDataset(IMAGES, torch.zeros(300)), batch_size=32)
    record = dc.export(net, path, example=IMAGES[:20], quantize="int8", calibration=loader)
    with torch.no_grad():
        expected = net(IMAGES[:20]).numpy()
    found = open_session(path)({"input": IMAGES[:20].numpy()})["logits"]
    assert record["verified"]["max_abs_diff"] == pytest.approx(np.abs(found - expected).max(), rel=1e-3)
    assert record["verified"]["agreement"] == (found.argmax(1) == expected.argmax(1)).mean()
    assert record["verified"]["against"] == "float"
    assert (record["audit"]["int8"], record["audit"]["float"]) == (2, 0)
    assert record["file_bytes"] == path.stat().st_size < record["float_bytes"]
    first = path.read_bytes()
    dc.export(net, path, example=IMAGES[:20], quantize="int8", calibration=IMAGES[:256])
    assert path.read_bytes() == first
    dc.export(net, path, example=IMAGES[:20], quantize=Static(observer="mse"), calibration={"input": IMAGES})
    assert path.read_bytes() != first


def test_an_artifact_in_integers(tmp_path: Path) -> None:
    data = Digits().open()
    task = ImageClassification().resolve(data)
    torch.manual_seed(0)
    spec, interface = SmallResNet(width=4), task.reading("student").interface
    with writing(tmp_path / "model", kind="model", name="student", meta={"side": "student", "seed": 0}) as draft:
        save_model(draft, spec.build(interface).eval(), spec, interface, side="student")
        draft.write_json("task.json", task.plain())
    artifact = Artifact.load(tmp_path / "model")
    images = torch.from_numpy(np.moveaxis(data.splits["train"].columns["image"][:64], -1, 1).copy())
    loader = DataLoader(TensorDataset(images, torch.zeros(64, dtype=torch.long)), batch_size=16)
    record = dc.export(artifact, tmp_path / "a.onnx", example=images[:8], quantize="int8", calibration=loader)
    assert record["audit"]["float"] == 0
    assert record["verified"]["samples"] == 8
    assert record["verified"]["sqnr_db"] > 20
    for wrong in ({"example": images[:8, :, :4]}, {"example": images[:8], "calibration": images[:, :, 1:]}):
        with pytest.raises(RecipeError, match=r"is uint8 .*the model takes uint8 \[batch, "):
            dc.export(artifact, tmp_path / "d.onnx", **{"quantize": "int8", "calibration": images, **wrong})
    verified = dc.export(artifact, tmp_path / "c.onnx", quantize="int8", calibration=images)["verified"]
    assert (verified["samples"], verified["on"], "made_up" in verified) == (64, "calibration", False)
    assert dc.export(artifact, tmp_path / "d.onnx", quantize="dynamic")["verified"]["made_up"] is True
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "c.onnx").read_bytes()
    assert open_session(tmp_path / "c.onnx").inputs[0].type == "uint8"


def test_errors_leave_no_file(tmp_path: Path, net: nn.Module) -> None:
    path, some = tmp_path / "small.onnx", IMAGES[:4]
    with pytest.raises(RecipeError, match="calibration is missing; static"):
        dc.export(net, path, example=some, quantize="int8")
    with pytest.raises(RecipeError, match="quantize is 'int9'; did you mean int8"):
        dc.export(net, path, example=some, quantize="int9", calibration=some)
    with pytest.raises(RecipeError, match=r"allowed: int8, dynamic, static, weight_only; .*WeightOnly\(bits=4\)"):
        dc.export(net, path, example=some, quantize="int4")
    for wrong in (torch.zeros(4, 3, 12, 12), torch.zeros(4, 10, 10), some.double()):
        with pytest.raises(RecipeError, match=r"input is float.. \[4, .*the model takes float32 \[batch, 3, 10, 10\]"):
            dc.export(net, path, example=some, quantize="int8", calibration=wrong)
    for wrong in (torch.zeros(4, 3, 12, 12), torch.zeros(3, 10, 10), some.double(), [1, 2]):
        with pytest.raises(RecipeError, match=r"example: (the model does not run on input float|input is a list)"):
            dc.export(net, path, example=wrong)
    with pytest.raises(RecipeError, match="calibration is for a quantized file"):
        dc.export(net, path, example=some, calibration=some)
    with pytest.raises(DataError, match="calibration: the data are empty"):
        dc.export(net, path, example=some, quantize="int8", calibration=[])
    with pytest.raises(DataError, match="calibration: the data are empty"):
        dc.export(net, path, example=some, quantize="int8", calibration=IMAGES[:0])
    with pytest.raises(RecipeError, match="the model takes input, an item gives image"):
        dc.export(net, path, example=some, quantize="int8", calibration=[{"image": some}])
    with pytest.raises(RecipeError, match="no layer can take integers"):
        dc.export(nn.ReLU(), path, example=some, quantize="int8", calibration=some)
    assert not list(tmp_path.iterdir())
