"""Static quantization: integer arithmetic against NumPy, kernels of the runtime, budgets, errors."""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from decoct.errors import BudgetMissed, DataError, PathError, RecipeError
from decoct.models.base import Interface
from decoct.models.onnx_file import open_session
from decoct.models.small_mobilenet import SmallMobileNet
from decoct.quantization._qdq import fit_bias
from decoct.quantization.audit import Audit, audit
from decoct.quantization.base import Quantized
from decoct.quantization.sensitivity import sqnr_db
from decoct.quantization.static import Static
from decoct.targets.onnx import graph, save
from shipped import one

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((24, 3, 12, 12)).astype(np.float32)


class Program(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def network(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(*layers)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for each in (module.weight.data, module.running_var):
                each.uniform_(0.5, 2)
            for each in (module.bias.data, module.running_mean):
                each.normal_()
        elif isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()
    return net.eval()


def floating(net: nn.Module, x: np.ndarray = IMAGES) -> onnx.ModelProto:
    example = {"x": torch.from_numpy(x[:2])}
    return graph(one(Program(net).eval(), example, {"x": {0: "batch"}}), opset=20)


def feeds(x: np.ndarray = IMAGES) -> object:
    def once() -> Iterator[Mapping[str, np.ndarray]]:
        return ({"x": part} for part in np.array_split(x, 3))

    return once


def answers(proto: onnx.ModelProto, folder: Path, x: np.ndarray = IMAGES) -> np.ndarray:
    return open_session(save(proto, folder / "file.onnx"))({"x": x})["logits"]


def audited(found: Quantized, folder: Path) -> Audit:
    return audit(save(found.graph, folder / "file.onnx"), found.changes)


CNN = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU())


def convolved(x: np.ndarray, weight: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """The sum of products, exactly."""
    out = nn.functional.conv2d(
        torch.from_numpy(x.astype(np.float64)), torch.from_numpy(weight.astype(np.float64)), None, stride, padding
    )
    return out.numpy()


@cache
def small() -> onnx.ModelProto:
    """A small net with all that fuses."""
    return floating(network(*CNN, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 10), nn.ReLU(), nn.Linear(10, 5)))


@cache
def two() -> onnx.ModelProto:
    """Two convolutions, a batch norm, two rectifiers."""
    return floating(network(*CNN))


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_are_those_of_the_affine_scheme_in_numpy(tmp_path: Path, per_channel: bool, symmetric: bool) -> None:
    found = Static(per_channel=per_channel, symmetric=symmetric).quantize(two(), feeds(), None)
    constants = {each.name: numpy_helper.to_array(each) for each in found.graph.graph.initializer}
    ranges = list(found.facts["ranges"].values())
    x = np.clip(3 * IMAGES, -6, 6)  # beyond what calibration saw: saturates
    codes = np.clip(np.rint(x / np.float32(ranges[0]["scale"])) + ranges[0]["zero_point"], 0, 255)
    convs = [node for node in found.graph.graph.node if node.op_type == "Conv"]
    made = {node.output[0]: node for node in found.graph.graph.node}
    for node, source, target, (stride, padding) in zip(convs, ranges, ranges[1:], [(1, 1), (2, 0)]):
        weight, scale, zero = (constants[name] for name in made[node.input[1]].input)
        bias, bias_scale, _ = (constants[name] for name in made[node.input[2]].input)
        assert weight.dtype == np.int8
        assert bias.dtype == np.int32
        assert not zero.any()
        assert np.abs(weight.astype(int)).max() == 127
        np.testing.assert_allclose(bias_scale, source["scale"] * scale, rtol=1e-6)
        sums = convolved(codes - source["zero_point"], weight, stride, padding) + bias.reshape(1, -1, 1, 1)
        ratio = (np.atleast_1d(bias_scale).astype(np.float64) / target["scale"]).reshape(1, -1, 1, 1)
        codes = np.clip(np.rint(sums * ratio) + target["zero_point"], 0, 255)
        assert target["zero_point"] == 0
    expected = codes * np.float32(ranges[2]["scale"])
    steps = np.abs(answers(found.graph, tmp_path, x) - expected) / ranges[2]["scale"]
    assert steps.max() < 1.5
    assert (steps < 0.01).mean() > 0.995
    assert expected.max() == pytest.approx(255 * ranges[2]["scale"], rel=1e-5)


def test_all_layers_of_a_residual_free_net_run_in_integers(tmp_path: Path) -> None:
    proto = small()
    before = proto.SerializeToString(deterministic=True)
    found = Static().quantize(proto, feeds(), None)
    assert proto.SerializeToString(deterministic=True) == before
    assert [(each.path, each.before, each.after) for each in found.changes] == [
        (name, 32, 8) for name in ("0", "3", "7", "9")
    ]
    seen = audited(found, tmp_path)
    assert (seen.count("int8"), seen.count("float"), seen.between, seen.warning()) == (4, 0, {}, "")
    assert [each.layer for each in seen.layers] == ["0", "3", "7", "9"]
    assert sqnr_db(answers(found.graph, tmp_path), answers(proto, tmp_path)) > 25
    again = Static().quantize(proto, feeds(), None)
    assert again.graph.SerializeToString(deterministic=True) == found.graph.SerializeToString(deterministic=True)
    assert found.graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert found.graph.opset_import[0].version == 20
    assert answers(found.graph, tmp_path, IMAGES[:1]).shape == (1, 5)


def test_relu6_and_residuals_are_taken_into_kernels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = SmallMobileNet(activation="relu6").build(Interface(kind="image", shape=(3, 12, 12), outputs=4))
    net.stem[0].weight.data *= 30  # so that values reach 6
    found = Static().quantize(floating(net.eval()), feeds(), None)
    seen = audited(found, tmp_path)
    assert (seen.count("float"), seen.between) == (0, {})
    assert any(each["scale"] * 255 == pytest.approx(6, rel=1e-5) for each in found.facts["ranges"].values())


@pytest.mark.parametrize("observer", ["min_max", "percentile", "entropy", "mse"])
def test_every_observer_gives_a_graph_that_answers(tmp_path: Path, observer: str) -> None:
    proto = small()
    found = Static(observer=observer, weights="mse").quantize(proto, feeds(), None)
    assert sqnr_db(answers(found.graph, tmp_path), answers(proto, tmp_path)) > 12


def test_layers_in_float_are_named_with_their_cause(tmp_path: Path) -> None:
    net = network(
        nn.Conv2d(3, 8, 3),
        nn.Hardswish(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ConvTranspose2d(8, 2, 2),
    )
    found = Static(protect=("4",)).quantize(floating(net), feeds(), None)
    seen = audited(found, tmp_path)
    left = {each.layer: each.cause for each in seen.layers if each.runs == "float"}
    assert left == {"4": "protected", "5": "the runtime has no int8 kernel for ConvTranspose"}
    assert seen.between == {"HardSwish": 1}
    assert "1 HardSwish in float" in seen.warning()
    assert "2 of 4 layers run in float: 4 (" in seen.warning()
    notes = {each.path: each.note for each in found.changes if each.after == 32}
    assert notes["4"] == "protected"
    assert seen.data()["int8"] == 2


def test_signed_activations_are_seen(tmp_path: Path) -> None:
    """The pattern of other tools: codes from -128 to 127 with zero inside block the rectifier."""
    proto = Static().quantize(two(), feeds(), None).graph
    for each in proto.graph.initializer:
        if each.name.endswith("_z") and each.data_type == onnx.TensorProto.UINT8:
            each.CopyFrom(numpy_helper.from_array(np.int8(0) + np.zeros((), np.int8), each.name))
    left = [each for each in audit(save(proto, tmp_path / "signed.onnx")).layers if each.runs == "float"]
    assert left
    assert {each.cause for each in left} == {"its activations are signed"}


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(40, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.table(x)).mean(1))


def test_an_encoder_and_its_table(tmp_path: Path) -> None:
    ids = RNG.integers(0, 40, (12, 7))
    proto = floating(Encoder().eval(), ids)
    found = Static().quantize(proto, feeds(ids), None)
    seen = audited(found, tmp_path)
    assert {each.cause for each in seen.layers if each.runs == "float"} == {"both factors are activations"}
    assert seen.count("int8") == 5
    assert sqnr_db(answers(found.graph, tmp_path, ids), answers(proto, tmp_path, ids)) > 25
    assert {each.name for each in found.graph.graph.initializer if each.dims == [40, 16]} == {"model.table.weight_rows"}
    plain = Static(embeddings=False).quantize(proto, feeds(ids), None)
    assert "model.table.weight" in {each.name for each in plain.graph.graph.initializer}


def test_a_convolution_at_the_output_keeps_its_name(tmp_path: Path) -> None:
    proto = floating(network(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    found = Static().quantize(proto, feeds(), None)
    assert audited(found, tmp_path).count("int8") == 2
    assert sqnr_db(answers(found.graph, tmp_path), answers(proto, tmp_path)) > 25


def test_a_bias_that_would_not_fit_widens_its_weights_scale() -> None:
    scales = fit_bias(np.array([1e-9, 0.01, 0.0]), np.array([5.0, 5.0, -2.0]), 1e-3)
    codes = np.array([5.0, 5.0, 2.0]) / (scales.astype(np.float64) * 1e-3)
    assert scales[1] == np.float32(0.01)
    assert codes.max() < 2**31
    assert codes[2] == pytest.approx(2**30, rel=1e-3)


def test_a_batch_norm_of_its_own_is_no_layer(tmp_path: Path) -> None:
    net = network(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AvgPool2d(2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    seen = audited(Static().quantize(floating(net), feeds(), None), tmp_path)
    assert [(each.layer, each.runs) for each in seen.layers] == [("0", "int8"), ("5", "int8")]


def test_a_dead_channel_still_adds_its_bias(tmp_path: Path) -> None:
    net = network(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    net[0].weight.data[1] = 0
    net[0].bias.data[1] = 0.7
    proto = floating(net)
    found = Static().quantize(proto, feeds(), None)
    assert sqnr_db(answers(found.graph, tmp_path), answers(proto, tmp_path)) > 25


def accuracy_like(proto: onnx.ModelProto, folder: Path) -> object:
    """A judge: the signal-to-noise ratio to the float graph, at most 60."""
    expected = answers(proto, folder)

    def judge(candidate: onnx.ModelProto) -> float:
        found = sqnr_db(answers(candidate, folder), expected)
        return 60.0 if found is None else min(found, 60.0)

    return judge


@pytest.fixture(scope="module")
def fragile() -> onnx.ModelProto:
    """A net whose second convolution has outliers in its input and so loses most."""
    net = network(*CNN, nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4))
    net[1].weight.data[0] *= 60
    net[3].weight.data[:, 0] /= 60
    return floating(net)


def test_budget_keeps_the_worst_layers_in_float(tmp_path: Path, fragile: onnx.ModelProto) -> None:
    judge = accuracy_like(fragile, tmp_path)
    whole = Static().quantize(fragile, feeds(), None)
    base = judge(whole.graph)
    found = Static(min_quality=base + 6, sensitivity=True).quantize(fragile, feeds(), judge)
    assert judge(found.graph) >= base + 6
    mixture, table = found.facts["mixture"], found.facts["sensitivity"]
    assert mixture["score"] == pytest.approx(judge(found.graph))
    assert mixture["integer_score"] == pytest.approx(base)
    kept = {each.path for each in found.changes if each.after == 32}
    assert 0 < len(kept) < 4
    assert kept == set(mixture["kept"]) == {each["layer"] for each in table[: len(kept)]}
    fewer = {each["layer"] for each in table[: len(kept) - 1]}
    assert judge(Static(protect=tuple(fewer)).quantize(fragile, feeds(), None).graph) < base + 6
    notes = {each.note for each in found.changes if each.after == 32}
    assert notes == {"kept in float for the budget"}
    assert Static(max_drop=100).quantize(fragile, feeds(), judge).facts["mixture"]["kept"] == []


def test_sensitivity_is_that_of_the_graphs_written(tmp_path: Path, fragile: onnx.ModelProto) -> None:
    judge = accuracy_like(fragile, tmp_path)
    table = Static(sensitivity=True).quantize(fragile, feeds(), judge).facts["sensitivity"]
    layers = [each["layer"] for each in table]
    assert sorted(layers) == ["0", "3", "5", "8"]
    assert [each["alone_db"] for each in table] == sorted(each["alone_db"] for each in table)
    for each in table[:2]:
        others = tuple(layer for layer in layers if layer != each["layer"])
        alone = Static(protect=others).quantize(fragile, feeds(), None).graph
        rest = Static(protect=(each["layer"],)).quantize(fragile, feeds(), None).graph
        some = IMAGES[:16]
        expected = answers(fragile, tmp_path, some)
        assert each["alone_db"] == pytest.approx(sqnr_db(answers(alone, tmp_path, some), expected), abs=0.3)
        assert each["rest_db"] == pytest.approx(sqnr_db(answers(rest, tmp_path, some), expected), abs=0.3)
        assert each["alone_score"] == pytest.approx(judge(alone), abs=0.3)


def test_errors_name_what_is_wrong(fragile: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="needs calibration data"):
        Static().quantize(fragile, None, None)
    with pytest.raises(DataError, match="the data are empty"):
        Static().quantize(fragile, lambda: iter(()), None)
    with pytest.raises(DataError, match="not finite"):
        Static().quantize(fragile, feeds(np.full_like(IMAGES, np.nan)), None)
    with pytest.raises(PathError, match=r"protect: no layer '33'; did you mean 3"):
        Static(protect=("33",)).quantize(fragile, feeds(), None)
    with pytest.raises(RecipeError, match=r"no layer can take integers: .*3: protected"):
        Static(protect=("*",)).quantize(fragile, feeds(), None)
    with pytest.raises(RecipeError, match="judged on validation data"):
        Static(max_drop=0.1).quantize(fragile, feeds(), None)
    with pytest.raises(BudgetMissed, match="min_quality is 70, the float graph scores 60"):
        Static(min_quality=70).quantize(fragile, feeds(), accuracy_like(fragile, tmp_path))
