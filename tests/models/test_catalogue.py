"""What every entry of the catalogue must do."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from decoct.artifact import Artifact, writing
from decoct.capture import capture
from decoct.errors import RecipeError
from decoct.models import CATALOGUE
from decoct.models.base import Interface, Model, shorthand
from decoct.models.bilstm import BiLSTM
from decoct.models.checks import call, example
from decoct.models.file import File
from decoct.models.interface import Port
from decoct.models.mlp import MLP
from decoct.models.saving import load_model, load_spec, save_model
from decoct.models.small_mobilenet import SmallMobileNet
from decoct.models.small_resnet import SmallResNet
from decoct.models.small_unet import SmallUNet
from decoct.models.small_vit import SmallViT
from decoct.models.timm import Timm
from decoct.models.torchvision import Torchvision
from decoct.models.transformers import Transformers
from decoct.spec import Choice

NAMES = {
    each.__name__: each
    for each in (BiLSTM, File, MLP, SmallMobileNet, SmallResNet, SmallUNet, SmallViT, Timm, Torchvision, Transformers)
}
GREY = Interface(kind="image", shape=(1, 28, 28), outputs=10)
RGB = Interface(kind="image", shape=(3, 32, 32), outputs=7)
MAPS = Interface(
    kind="image",
    inputs=RGB.inputs,
    outputs={"logits": Port(kind="logits", shape=(None, None, 5), axes={0: "batch"})},
)
TEXT = Interface(kind="text", shape=(12,), outputs=3, vocabulary=50, padding=0)
TABLE = Interface(kind="tabular", shape=(9,), outputs=1)
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}

CASES: list[tuple[Model, Interface, str]] = [
    (Torchvision("resnet18", small=True), GREY, "layer3.0.bn2"),
    (Torchvision("mobilenet_v3_small"), RGB, "features.3"),
    (Timm("resnet18"), GREY, "layer2"),
    (Timm("vit_tiny_patch16_224"), RGB, "blocks.3.mlp"),
    (Transformers(config={"model_type": "bert", **BERT}), TEXT, "bert.encoder.layer.1"),
    (
        Transformers(config={"model_type": "bert", **BERT}, attention="eager"),
        TEXT,
        "bert.encoder.layer.1.attention.self[1]",
    ),
    (SmallResNet(width=4), GREY, "layer2.0.relu1"),
    (SmallResNet(width=4, depths=(2, 1), stem_stride=2), RGB, "stem"),
    (SmallMobileNet(), GREY, "layer2.1.depthwise"),
    (SmallViT(patch=4, width=16, depth=2, heads=2), GREY, "blocks.1"),
    (SmallMobileNet(width=8, depths=(1, 1), expansion=2, stem_stride=1, activation="relu6"), RGB, "layer1"),
    (SmallUNet(widths=(4, 6, 8)), MAPS, "up1.5"),
    (SmallUNet(widths=(4,), stem_stride=2), MAPS, "down1"),
    (Torchvision("lraspp_mobilenet_v3_large"), MAPS, "backbone.16"),
    (MLP(hidden=(8, 4), dropout=0.1), TABLE, "hidden.1"),
    (MLP(hidden=()), GREY, "head"),
    (BiLSTM(embedding=6, hidden=5, layers=2), TEXT, "layer2.forwards[0]"),
]
IDS = [f"{spec.use}-{i}" for i, (spec, _, _) in enumerate(CASES)]
every = pytest.mark.parametrize(("spec", "interface", "path"), CASES, ids=IDS)


def probe(interface: Interface) -> Callable[[nn.Module], torch.Tensor]:
    """The logits of one batch of made-up samples."""
    inputs = example(interface, 3)
    generator = torch.Generator().manual_seed(1)
    if "input" in inputs:
        inputs["input"] = torch.randn(inputs["input"].shape, generator=generator)
    else:
        inputs["input_ids"] = torch.randint(1, 50, inputs["input_ids"].shape, generator=generator)
    return lambda module: call(module, inputs)


def test_all_entries_are_here() -> None:
    assert {spec.use for spec, _, _ in CASES} == set(CATALOGUE) - {
        "file",
        "given",
        "artifact",
        "onnx",
        "exits",
        "stored",
        "http",
        "black_box",
        "estimator",  # a file of another library: tests/models/test_estimator_file.py
        "small_gpt",
        "small_detector",  # no logits: tests/models/test_detectors.py
        "faster_rcnn",
    }


@every
def test_spec_round_trips(spec: Model, interface: Interface, path: str) -> None:
    choice = Choice("decoct.models", shorthand="decoct.models.base:shorthand")
    assert choice.validate(spec.plain()) == spec
    assert choice.validate(spec.plain(defaults=False)) == spec
    assert eval(repr(spec), dict(NAMES)) == spec
    assert CATALOGUE.summary(spec.use)


@every
def test_builds_runs_saves_and_loads(spec: Model, interface: Interface, path: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = spec.build(interface)
    assert module.training
    logits = probe(interface)
    out = logits(module)
    assert out.shape[:2] == (3, interface.width)
    assert out.ndim == (4 if interface.per_pixel else 2)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters() if p.requires_grad)

    module.eval()
    with capture(module, [path]) as features:
        expected = logits(module).detach()
    assert features[path].isfinite().all()
    module.train()

    state = torch.get_rng_state()
    with writing(tmp_path / "a", kind="model", name="a") as draft:
        save_model(draft, module, spec, interface, side="student", probe=lambda each: [logits(each)])
    artifact = Artifact.load(tmp_path / "a")
    again = load_model(artifact)
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training
    assert artifact.json("model.json")["stages"] == []
    assert torch.equal(logits(again.module), expected)
    assert load_spec(artifact)[1:] == (interface, "student")


@every
def test_equal_seeds_build_equal_weights(spec: Model, interface: Interface, path: str) -> None:
    torch.manual_seed(3)
    one = spec.build(interface)
    torch.manual_seed(3)
    other = spec.build(interface, pretrained=False)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@every
def test_other_kinds_of_input_are_refused(spec: Model, interface: Interface, path: str) -> None:
    others = {"image": TEXT, "text": TABLE, "tabular": TEXT}
    with pytest.raises(RecipeError, match="the task gives"):
        spec.build(others[interface.kind])


def test_sizes_that_recipes_rely_on() -> None:
    def count(module: nn.Module) -> int:
        return sum(each.numel() for each in module.parameters())

    assert count(SmallResNet(width=32).build(GREY)) == 308_074
    assert count(SmallMobileNet().build(GREY)) == 24_058
    assert count(MLP(hidden=(32, 32)).build(TABLE)) == 9 * 32 + 32 + 32 * 32 + 32 + 33


def test_default_nets_rectify_only() -> None:
    """Other activations run slower in int8."""
    smooth = (nn.GELU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Tanh)
    for spec, interface in ((SmallResNet(), GREY), (SmallMobileNet(), GREY), (SmallViT(), GREY), (MLP(), TABLE)):
        assert not any(isinstance(module, smooth) for module in spec.build(interface).modules())


def test_shorthand() -> None:
    choice = Choice("decoct.models", shorthand="decoct.models.base:shorthand")
    assert choice.validate("small_resnet") == SmallResNet()
    assert choice.validate("timm/resnet34") == Timm("resnet34")
    assert choice.validate("torchvision/resnet18") == Torchvision("resnet18")
    assert choice.validate("transformers//folder/of/bert") == Transformers(path="/folder/of/bert")
    assert shorthand({"use": "mlp"}) == {"use": "mlp"}
    for value, message in {
        "runs/weights.safetensors": "use: file, path: runs/weights.safetensors",
        "resnet18": "torchvision/resnet18 or timm/resnet18",
        "small_resnt": "did you mean small_resnet",
    }.items():
        with pytest.raises(ValueError, match=message):
            choice.validate(value)


def test_copies_are_independent() -> None:
    module = SmallResNet(width=4).build(GREY)
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.head.weight.zero_()
    assert module.head.weight.abs().sum() > 0


def test_small_vit_refuses_what_does_not_divide() -> None:
    with pytest.raises(RecipeError, match="patch is 5 and images are"):
        SmallViT(patch=5).build(GREY)
    with pytest.raises(RecipeError, match="width is 30 and heads 4"):
        SmallViT(width=30, heads=4).build(GREY)


def test_small_vit_attends_as_defined() -> None:
    """One attention module against the formula, head by head, in NumPy float64."""
    from decoct.models.small_vit import Attention

    module = Attention(8, 2).double()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    weight, bias = module.qkv.weight.detach().numpy(), module.qkv.bias.detach().numpy()
    q, k, v = np.split(x.numpy() @ weight.T + bias, 3, axis=-1)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = q[..., head] @ k[..., head].transpose(0, 2, 1) / 2.0
        share = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(share / share.sum(-1, keepdims=True) @ v[..., head])
    expected = np.concatenate(heads, -1) @ module.proj.weight.detach().numpy().T + module.proj.bias.detach().numpy()
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-10)
