"""Networks with fake quantizers: the file computes in integers and says what torch says; saved, built again."""

import copy
import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decoct.artifact import Artifact, writing
from decoct.capture import capture
from decoct.errors import PathError, RecipeError
from decoct.meters.parameters import parameters
from decoct.models.base import Interface
from decoct.models.bilstm import BiLSTM
from decoct.models.mlp import MLP
from decoct.models.onnx_file import exact_options, open_session
from decoct.models.rewrites import rewritten, skeleton
from decoct.models.saving import STRUCTURE, load_model, save_model
from decoct.models.small_mobilenet import SmallMobileNet
from decoct.models.small_resnet import SmallResNet
from decoct.quantization.aware.fake_quantize import FakeQuantize
from decoct.quantization.aware.insertion import FakeQuantizers
from decoct.quantization.aware.modules import ActivationQuantizer, DynamicLinear, QuantizedLayer, QuantizedNet
from decoct.targets.onnx import graph, save
from decoct.training.compression import Evidence
from shipped import one

IMAGES = Interface(kind="image", shape=(1, 16, 16), outputs=10)
TEXT = Interface(kind="text", shape=(12,), outputs=3, vocabulary=50, padding=0)
INTEGER = {"QLinearConv", "QGemm", "QLinearMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulInteger"}
FLOAT = {"Conv", "FusedConv", "Gemm", "FusedGemm"}


def trained(spec, interface: Interface = IMAGES) -> tuple[nn.Module, Tensor]:
    """A network whose batch norm has seen images, and some of these."""
    torch.manual_seed(0)
    net, x = spec.build(interface), torch.randn(32, *interface.shape)
    for _ in range(10):
        net(x)
    return net.eval(), x


def descend(module: nn.Module, x: Tensor, steps: int = 5) -> float:
    """Trains towards its own first answers plus noise; returns the loss."""
    module.train()
    goal = module(x).detach() + 0.1 * torch.randn(len(x), 10, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(module.parameters(), 2e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (module(x) - goal).square().mean()
        loss.backward()
        optimizer.step()
    module.eval()
    return loss.item()


class Program(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image)


def written(module: nn.Module, x: Tensor, folder: Path) -> tuple[np.ndarray, Counter, Path]:
    """What the file says, and the operators that ONNX Runtime executes."""
    proto = graph(one(Program(module).eval(), {"image": x}, {"image": {0: "batch"}}), opset=20)
    path = save(proto, folder / "model.onnx")
    options = exact_options()
    options.log_severity_level, options.optimized_model_filepath = 3, str(folder / "optimized.onnx")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    [outputs] = session.run(None, {"image": x.numpy()})
    return outputs, Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node), path


def stored(module: nn.Module, spec, folder: Path, x: Tensor, interface: Interface = IMAGES) -> Artifact:
    with writing(folder, kind="model", name="student", meta={"side": "student"}) as draft:
        save_model(draft, module, spec, interface, side="student", probe=lambda each: [each(x)])
    return Artifact.load(folder)


@pytest.mark.parametrize(
    ("spec", "layers", "method"),
    [
        (SmallResNet(width=8), 10, "ste"),
        (SmallMobileNet(width=8, activation="relu6"), 14, "lsq"),
        (MLP(hidden=(16, 16)), 3, "lsq"),
    ],
)
def test_every_layer_of_the_file_runs_in_integers_and_says_what_torch_says(
    spec, layers: int, method: str, tmp_path: Path
) -> None:
    net, x = trained(spec)
    found = FakeQuantize(method=method).apply(net, Evidence((x,)))
    assert isinstance(found.module, QuantizedNet)
    assert [change.after for change in found.changes] == [8] * layers
    descend(found.module, x)
    with torch.no_grad():
        expected = found.module(x).numpy()
    outputs, operators, path = written(found.module, x, tmp_path)
    assert sum(operators[each] for each in INTEGER) == layers
    assert not FLOAT & set(operators)
    assert np.abs(outputs - expected).max() < 0.1 * expected.std()
    kinds = {each.data_type for each in onnx.load(path).graph.initializer if len(each.dims) > 1}
    assert kinds == {onnx.TensorProto.INT8}


def test_at_8_bits_the_network_says_nearly_what_it_said_in_float() -> None:
    net, x = trained(SmallResNet(width=8))
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        expected = net(x)
        outputs = FakeQuantize().apply(net, Evidence((x,))).module(x)
    assert (outputs - expected).abs().max() < 0.1 * expected.std()
    assert not torch.equal(outputs, expected)
    assert all(torch.equal(each, before[name]) for name, each in net.state_dict().items())


def test_calibration_uses_the_passes_of_the_evidence() -> None:
    net, x = trained(MLP(hidden=(16,)))
    wide = Evidence((x,), passes=lambda module: (module(x), module(3 * x), None)[-1])
    narrow = FakeQuantize(observer="min_max").apply(net, Evidence((x,))).module
    found = FakeQuantize(observer="min_max").apply(net, wide).module
    scales = [next(m for m in each.modules() if isinstance(m, ActivationQuantizer)).scale() for each in (narrow, found)]
    assert scales[1].item() == pytest.approx(3 * scales[0].item(), rel=1e-5)


@pytest.mark.parametrize("bits", [2, 4])
def test_coarse_weights_lie_on_their_grid_in_the_file(bits: int, tmp_path: Path) -> None:
    net, x = trained(SmallResNet(width=8))
    module = FakeQuantize(weight_bits=bits).apply(net, Evidence((x,))).module
    descend(module, x)
    outputs, operators, path = written(module, x, tmp_path)
    integers = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}
    weights = {name: each for name, each in integers.items() if each.ndim > 1}
    most = {name: int(np.abs(each.astype(int)).max()) for name, each in weights.items()}
    ends = [name for name, each in most.items() if each > 2 ** (bits - 1) - 1]
    assert len(ends) == 2, "the first and the last layer keep 8 bits"
    assert operators["QLinearConv"] == 9
    expected = module(x).detach().numpy()
    assert np.abs(outputs - expected).max() < 0.1 * expected.std()


def test_activations_of_4_bits_are_those_of_torch_in_the_file(tmp_path: Path) -> None:
    net, x = trained(MLP(hidden=(16, 16)))
    module = FakeQuantize(activation_bits=4).apply(net, Evidence((x,))).module
    outputs, _, _ = written(module, x, tmp_path)
    with torch.no_grad():
        expected = module(x).numpy()
    assert np.median(np.abs(outputs - expected)) < 1e-3 * expected.std()


def test_learned_scales_move_and_kept_ones_stay() -> None:
    net, x = trained(SmallResNet(width=8))
    for method, moves in (("lsq", True), ("ste", False)):
        module = FakeQuantize(method=method, weight_bits=4).apply(net, Evidence((x,))).module
        quantizers = [each for each in module.modules() if isinstance(each, ActivationQuantizer)]
        before = torch.stack([each.scale() for each in quantizers]).detach()
        descend(module, x)
        after = torch.stack([each.scale() for each in quantizers]).detach()
        assert bool((after != before).all()) is moves
        assert bool((after > 0).all())


def test_saved_and_loaded_it_is_the_same_bit_for_bit_and_trains_on(tmp_path: Path) -> None:
    spec = SmallResNet(width=8)
    net, x = trained(spec)
    module = FakeQuantize(weight_bits=4).apply(net, Evidence((x,))).module
    descend(module, x)
    artifact = stored(module, spec, tmp_path / "first", x)
    again = load_model(artifact).module
    assert torch.equal(again(x), module(x))
    assert [stage["use"] for stage in artifact.json(STRUCTURE)["stages"]] == ["fake_quantizers"]
    descend(again, x)
    descend(module, x)
    assert torch.equal(again(x), module(x))
    third = load_model(stored(again, spec, tmp_path / "second", x)).module
    assert torch.equal(third(x), again(x))


def test_a_pruned_network_is_built_again_from_deltas_then_quantizers(tmp_path: Path) -> None:
    spec = SmallResNet(width=8, depths=(2, 1, 1))
    net, x = trained(spec)
    block = net.layer1[0]
    block.conv1, block.bn1, block.conv2 = (
        nn.Conv2d(8, 5, 3, 1, 1, bias=False),
        nn.BatchNorm2d(5),
        nn.Conv2d(5, 8, 3, 1, 1),
    )
    del net.layer1[1]
    module = FakeQuantize().apply(net.eval(), Evidence((x,))).module
    artifact = stored(module, spec, tmp_path / "a", x)
    assert [stage["use"] for stage in artifact.json(STRUCTURE)["stages"]] == ["deltas", "fake_quantizers"]
    again = load_model(artifact).module
    assert torch.equal(again(x), module(x))
    outputs, operators, _ = written(again, x, tmp_path)
    assert operators["QLinearConv"] == 9
    assert np.abs(outputs - again(x).detach().numpy()).max() < 0.1 * outputs.std()


def test_a_stage_of_another_version_is_refused(tmp_path: Path) -> None:
    spec = MLP(hidden=(8,))
    net, x = trained(spec)
    artifact = stored(FakeQuantize().apply(net, Evidence((x,))).module, spec, tmp_path / "a", x)
    record = artifact.json(STRUCTURE)
    record["stages"][0]["use"] = "unheard_of"
    folder = tmp_path / "b"
    with writing(folder, kind="model", name="student", meta={"side": "student"}) as draft:
        draft.write_json(STRUCTURE, record)
        (draft.folder / "model.safetensors").write_bytes(artifact.file("model.safetensors").read_bytes())
    with pytest.raises(RecipeError, match="unheard_of"):
        load_model(Artifact.load(folder))
    assert json.dumps(record)


def test_features_of_layers_that_were_traced_through_are_there() -> None:
    net, x = trained(SmallResNet(width=8))
    module = FakeQuantize().apply(net, Evidence((x,))).module
    paths = ["stem", "layer1", "layer1.0", "layer3"]
    with torch.no_grad(), capture(net, paths) as wanted, capture(module, paths) as found:
        net(x)
        module(x)
    for path in paths:
        assert found[path].shape == wanted[path].shape
        assert (found[path] - wanted[path]).square().mean().sqrt() < 0.1 * wanted[path].std()


def test_what_torch_fx_cannot_trace_gets_dynamic_linear_layers(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 10)

        def forward(self, image: Tensor) -> Tensor:
            if image.dim() != 2:
                raise ValueError("a batch of vectors is needed")
            return self.second(F.gelu(self.first(image)))

    torch.manual_seed(0)
    net, x = Branching().eval(), torch.randn(8, 16)
    found = FakeQuantize().apply(net, Evidence((x,)))
    assert isinstance(found.module.first, DynamicLinear)
    descend(found.module, x)
    with torch.no_grad():
        expected = found.module(x).numpy()
        assert (found.module(x[:2]) - found.module(x)[:2]).abs().max() > 0, "ranges are those of the batch"
    outputs, operators, _ = written(found.module, x, tmp_path)
    assert np.abs(outputs - expected).max() < 0.02 * expected.std()
    assert operators["DynamicQuantizeMatMul"] == 2
    with pytest.raises(RecipeError, match="static needs a network that torch"):
        FakeQuantize(activations="static").apply(net, Evidence((x,)))
    with pytest.raises(RecipeError, match="activation_bits is 4"):
        FakeQuantize(activation_bits=4).apply(net, Evidence((x,)))


def test_a_transformer_has_its_linear_layers_in_integers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=50, num_labels=3, **sizes)
    net = transformers.BertForSequenceClassification(config).eval()
    ids = torch.randint(1, 50, (4, 12))
    feeds = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found = FakeQuantize(weight_bits=8).apply(net, Evidence((), feeds))
    module = found.module
    assert len(found.changes) == 8
    with torch.no_grad():
        expected = module(**feeds).logits
        assert (expected - net(**feeds).logits).abs().max() < 0.2 * expected.std()

    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits

    axes = {name: {0: "batch", 1: "length"} for name in feeds}
    path = save(graph(one(Text().eval(), feeds, axes), opset=20), tmp_path / "model.onnx")
    session = open_session(path)
    short = {name: each[:2, :7] for name, each in feeds.items()}
    for feed in (feeds, short):
        [outputs] = session({name: each.numpy() for name, each in feed.items()}).values()
        with torch.no_grad():
            np.testing.assert_allclose(outputs, module(**feed).logits.numpy(), atol=0.05 * expected.std().item())


def test_recurrent_weights_stay_in_float_and_it_is_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = BiLSTM(hidden=8, embedding=8)
    net = spec.build(TEXT).eval()
    ids = torch.randint(1, 50, (4, 12))
    feeds = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found = FakeQuantize().apply(net, Evidence((), feeds))
    notes = {change.path: change.note for change in found.changes if change.note}
    assert set(notes.values()) == {"recurrent weights stay in float"}
    with writing(tmp_path / "a", kind="model", name="student", meta={"side": "student"}) as draft:
        save_model(draft, found.module, spec, TEXT, side="student")
    again = load_model(Artifact.load(tmp_path / "a")).module
    assert torch.equal(again(**feeds), found.module.eval()(**feeds))


def test_protected_layers_stay_in_float_and_a_wrong_pattern_names_the_nearest(tmp_path: Path) -> None:
    net, x = trained(SmallResNet(width=8))
    found = FakeQuantize(protect=("layer2.*",)).apply(net, Evidence((x,)))
    kept = {change.path for change in found.changes if change.note == "protected"}
    assert kept == {"layer2.0.conv1", "layer2.0.conv2", "layer2.0.shortcut.0"}
    assert not any(isinstance(each, QuantizedLayer) for each in found.module.get_submodule("layer2").modules())
    _, operators, _ = written(found.module, x, tmp_path)
    assert operators["QLinearConv"] == 6
    with pytest.raises(PathError, match=r"layre1.*layer1"):
        FakeQuantize(protect=("layre1",)).apply(net, Evidence((x,)))
    with pytest.raises(RecipeError, match="no layer can be quantized"):
        FakeQuantize(protect=("*",)).apply(net, Evidence((x,)))


def test_what_cannot_be_quantized_is_refused() -> None:
    net, x = trained(MLP(hidden=(8,)))
    module = FakeQuantize().apply(net, Evidence((x,))).module
    with pytest.raises(RecipeError, match="has fake quantizers already"):
        FakeQuantize().apply(module, Evidence((x,)))
    with pytest.raises(RecipeError, match="no linear layer or convolution"):
        FakeQuantize().apply(nn.Sequential(nn.ReLU()), Evidence((x,)))
    with torch.no_grad():
        next(net.parameters()).fill_(float("inf"))
    with pytest.raises(RecipeError, match="finite"):
        FakeQuantize().apply(net, Evidence((x,)))
    with pytest.raises(RecipeError, match="weight_bits"):
        FakeQuantize.parse({"weight_bits": 9})


def test_a_skeleton_keeps_shapes_and_sharing_and_no_numbers() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    net[1].weight = net[0].weight
    bones = skeleton(net)
    assert bones[1].weight is bones[0].weight
    assert all(each.is_meta for each in (*bones.parameters(), *bones.buffers()))
    assert {n: p.shape for n, p in bones.state_dict().items()} == {n: p.shape for n, p in net.state_dict().items()}
    assert rewritten(net) is None


def test_a_nearly_dead_channel_keeps_its_bias_in_the_file(tmp_path: Path) -> None:
    net, x = trained(SmallResNet(width=8))
    with torch.no_grad():
        net.stem[1].weight[0], net.stem[1].bias[0] = 1e-9, 0.7
        net.stem[1].weight[1], net.stem[1].bias[1] = 0.0, 0.3
    module = FakeQuantize().apply(net, Evidence((x,))).module
    outputs, _, _ = written(module, x, tmp_path)
    expected = module(x).detach().numpy()
    assert np.abs(outputs - expected).max() < 0.1 * expected.std()


class Dropping(nn.Module):
    """Dropout by function, and stochastic depth that reads the mode."""

    class Path(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (torch.rand(len(x), 1) < 0.5) * 2 if self.training else x

    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn(x.shape) if self.training else x * 1.0

    def __init__(self, *, noise: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 10)
        self.path, self.noise = self.Path(), self.Noise() if noise else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.first(x).relu(), 0.25, self.training)
        x = x + self.path(self.second(x))
        return self.last(self.noise(x))


def test_dropout_by_function_and_stochastic_depth_are_at_work_in_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Dropping().eval(), torch.randn(2000, 16)
    found = FakeQuantize().apply(net, Evidence((x,)))
    module = found.module
    assert not any(change.note for change in found.changes)
    paths = ["functional_dropouts.dropout", "path"]
    module.train()
    with torch.no_grad(), capture(module, [*paths, "path@input"]) as seen:
        module(x)
    first = (seen["functional_dropouts.dropout"] == 0).float().mean()
    assert first == pytest.approx(0.25 + 0.75 * float((net.first(x) <= 0).float().mean()), abs=0.03)
    dropped = (seen["path"] == 0).all(1)
    assert float(dropped.float().mean()) == pytest.approx(0.5, abs=0.06)
    assert torch.equal(seen["path"][~dropped], 2 * seen["path@input"][~dropped])
    module.eval()
    assert torch.equal(module(x), module(x))
    outputs, operators, _ = written(module, x[:8], tmp_path)
    assert sum(operators[each] for each in INTEGER) == 3
    assert not FLOAT & set(operators)
    assert np.abs(outputs - module(x[:8]).detach().numpy()).max() < 0.1 * outputs.std()


def test_code_that_asks_for_the_mode_otherwise_is_said() -> None:
    net, x = Dropping(noise=True).eval(), torch.randn(8, 16)
    notes = {each.path: each.note for each in FakeQuantize().apply(net, Evidence((x,))).changes if each.note}
    assert list(notes) == ["noise"]
    assert "training mode" in notes["noise"]


def test_the_norms_of_timm_are_folded_and_every_convolution_runs_in_integers(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net, x = timm.create_model("mobilenetv2_035", num_classes=10, drop_path_rate=0.2), torch.randn(8, 3, 32, 32)
    for _ in range(10):
        net(x)
    net.eval()
    found = FakeQuantize().apply(net, Evidence((x,)))
    module = found.module
    assert len(found.changes) == 53
    assert not any(change.note for change in found.changes)
    assert not any(isinstance(each, nn.BatchNorm2d) for each in module.modules())
    assert not any("running" in name for name in module.state_dict())
    descend(module, x, steps=1)
    with torch.no_grad():
        expected = module(x).numpy()
    outputs, operators, path = written(module, x, tmp_path)
    assert operators["QLinearConv"] == 52
    assert operators["BatchNormalization"] == 0
    assert not FLOAT & set(operators)
    assert np.abs(outputs - expected).max() < 0.1 * expected.std()
    integers = [each for each in onnx.load(path).graph.initializer if len(each.dims) > 1]
    assert {each.data_type for each in integers} == {onnx.TensorProto.INT8}
    assert len(integers) == 53


def test_what_is_counted_and_kept_is_what_ships(tmp_path: Path) -> None:
    spec = SmallResNet(width=8)
    net, x = trained(spec)
    module = FakeQuantize().apply(net, Evidence((x,))).module
    layers = [each for each in net.modules() if isinstance(each, nn.Conv2d | nn.Linear)]
    ships = sum(each.weight.numel() + len(each.weight) for each in layers)
    assert parameters(module).total == parameters(module).trainable == ships
    assert not any("running" in name or ".bn" in name for name in module.state_dict())
    _, _, path = written(module, x, tmp_path)
    kinds = (onnx.TensorProto.INT8, onnx.TensorProto.INT32)
    stored_ = [
        each for each in onnx.load(path).graph.initializer if each.data_type in kinds and "zero" not in each.name
    ]
    sizes = [onnx.numpy_helper.to_array(each).size for each in stored_ if each.dims]
    assert sum(sizes) >= ships


def test_files_of_the_earlier_form_are_built_as_they_were(tmp_path: Path) -> None:
    spec = SmallResNet(width=8)
    net, x = trained(spec)
    now = FakeQuantize(weight_bits=4).apply(net, Evidence((x,))).module
    rewrite = rewritten(now).rewrite
    assert rewrite.plain()["form"] == 2
    earlier = rewrite.replace(form=1).apply(net)
    state = now.state_dict()
    assert set(state) < set(earlier.state_dict())
    assert any("running_mean" in name for name in earlier.state_dict())
    earlier.load_state_dict(state, strict=False)
    artifact = stored(earlier.eval(), spec, tmp_path / "a", x)
    record = artifact.json(STRUCTURE)
    assert record["stages"][0].pop("form", 1) == 1
    folder = tmp_path / "b"
    with writing(folder, kind="model", name="student", meta={"side": "student"}) as draft:
        draft.write_json(STRUCTURE, record)
        (draft.folder / "model.safetensors").write_bytes(artifact.file("model.safetensors").read_bytes())
    assert torch.equal(load_model(Artifact.load(folder)).module(x), now(x))
    assert isinstance(rewrite, FakeQuantizers)


def test_bits_of_the_ends_are_those_that_are_asked_for() -> None:
    net, x = trained(SmallResNet(width=8))
    found = FakeQuantize(weight_bits=8, ends_bits=4).apply(net, Evidence((x,)))
    assert [each.after for each in found.changes] == [4, *[8] * 8, 4]
