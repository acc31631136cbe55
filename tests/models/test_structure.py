"""Changed structures come back bit for bit, by JSON alone; what cannot is refused by path."""

import copy
import json
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from decoct.errors import CannotRebuild
from decoct.models.base import Interface, Model
from decoct.models.bilstm import BiLSTM
from decoct.models.checks import call, example
from decoct.models.mlp import MLP
from decoct.models.plain import decode, encode
from decoct.models.small_resnet import SmallResNet
from decoct.models.structure import describe, rebuild
from decoct.models.timm import Timm
from decoct.models.transformers import Transformers
from decoct.models.weights import all_tensors, fill

IMAGE = Interface(kind="image", shape=(1, 16, 16), outputs=4)
RGB = Interface(kind="image", shape=(3, 32, 32), outputs=4)
TEXT = Interface(kind="text", shape=(8,), outputs=2, vocabulary=30, padding=0)
TABLE = Interface(kind="tabular", shape=(6,), outputs=2)
BERT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
ENCODER = Transformers(config={"model_type": "bert", **BERT})


def replayed(module: nn.Module, base: Callable[[], nn.Module]) -> tuple[nn.Module, list[dict]]:
    """The module as rebuilt from a fresh build of its Spec, JSON and weights."""
    before = {name: tensor.clone() for name, tensor in all_tensors(module).items()}
    deltas = json.loads(json.dumps(describe(module, base())))
    again = rebuild(base(), deltas)
    fill(again, all_tensors(again), before, "weights")
    assert all(torch.equal(tensor, before[name]) for name, tensor in all_tensors(module).items())
    return again, deltas


def check(module: nn.Module, spec: Model, interface: Interface) -> tuple[nn.Module, list[dict]]:
    """Rebuilt, the module answers alike in eval and in train mode, and has the same gradients."""
    again, deltas = replayed(module, lambda: spec.build(interface, pretrained=False))
    inputs = example(interface, 3)
    for name, value in inputs.items():
        inputs[name] = torch.randn_like(value) if value.is_floating_point() else torch.randint(1, 2, value.shape)
    for mode in (False, True):
        answers = []
        for each in (module, again):
            each.train(mode)
            torch.manual_seed(0)
            each.zero_grad()
            out = call(each, inputs)
            out.sum().backward()
            answers.append([out, *(p.grad for _, p in sorted(each.named_parameters()) if p.grad is not None)])
        assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))
    assert list(dict(again.named_modules(remove_duplicate=False))) == list(
        dict(module.named_modules(remove_duplicate=False))
    )
    return again, deltas


def slim(conv: nn.Conv2d | nn.Linear, outputs: list[int] | None, inputs: list[int] | None) -> None:
    """Keeps some channels in place, as structured pruning does."""
    weight = conv.weight.data
    weight = weight if outputs is None else weight[outputs]
    conv.weight = nn.Parameter(weight if inputs is None else weight[:, inputs])
    if conv.bias is not None and outputs is not None:
        conv.bias = nn.Parameter(conv.bias.data[outputs])
    names = ("out_features", "in_features") if isinstance(conv, nn.Linear) else ("out_channels", "in_channels")
    setattr(conv, names[0], conv.weight.shape[0])
    setattr(conv, names[1], conv.weight.shape[1])


def slim_norm(norm: nn.BatchNorm2d, kept: list[int]) -> None:
    norm.num_features = len(kept)
    norm.weight, norm.bias = nn.Parameter(norm.weight.data[kept]), nn.Parameter(norm.bias.data[kept])
    norm.running_mean, norm.running_var = norm.running_mean[kept], norm.running_var[kept]


def test_an_unchanged_model_has_no_deltas() -> None:
    for spec, interface in ((SmallResNet(width=4), IMAGE), (ENCODER, TEXT), (BiLSTM(embedding=4, hidden=4), TEXT)):
        assert check(spec.build(interface), spec, interface)[1] == []


def test_pruned_residual_net() -> None:
    spec = SmallResNet(width=8)
    net = spec.build(IMAGE)
    for name, kept in (("layer1.0", [0, 3, 5]), ("layer3.0", list(range(0, 32, 3)))):
        block = net.get_submodule(name)
        slim(block.conv1, kept, None)
        slim_norm(block.bn1, kept)
        slim(block.conv2, None, kept)
    again, deltas = check(net, spec, IMAGE)
    assert again.layer1[0].conv1.out_channels == 3
    assert {delta["op"] for delta in deltas} == {"tensor", "set"}


@given(st.lists(st.integers(0, 7), min_size=1, unique=True), st.lists(st.integers(0, 4), min_size=1, unique=True))
@settings(max_examples=10, deadline=None)
def test_pruned_mlp_of_any_width(first: list[int], second: list[int]) -> None:
    spec = MLP(hidden=(8, 5))
    net = spec.build(TABLE)
    slim(net.hidden[0][0], first, None)
    slim(net.hidden[1][0], second, first)
    slim(net.head, None, second)
    check(net, spec, TABLE)


def test_dropped_encoder_layers() -> None:
    module = ENCODER.build(TEXT)
    layers = module.bert.encoder.layer
    module.bert.encoder.layer = nn.ModuleList([layers[0], layers[3]])
    module.config.num_hidden_layers = 2
    again, _ = check(module, ENCODER, TEXT)
    assert len(again.bert.encoder.layer) == again.config.num_hidden_layers == 2


def test_added_encoder_layer() -> None:
    module = ENCODER.build(TEXT)
    module.bert.encoder.layer.append(copy.deepcopy(module.bert.encoder.layer[1]))
    module.config.num_hidden_layers = 5
    assert len(check(module, ENCODER, TEXT)[0].bert.encoder.layer) == 5


def test_shared_layers_and_tensors_stay_shared() -> None:
    module = ENCODER.build(TEXT)
    layers = module.bert.encoder.layer
    layers[1], layers[3] = layers[0], layers[2]
    layers[2].output.dense.bias = layers[0].output.dense.bias
    again, deltas = check(module, ENCODER, TEXT)
    found = again.bert.encoder.layer
    assert found[1] is found[0] is not found[2] is found[3]
    assert found[2].output.dense.bias is found[0].output.dense.bias
    assert [delta["op"] for delta in deltas] == ["alias", "alias", "alias_tensor"]


def test_what_the_base_shares_is_untied() -> None:
    def base() -> nn.Module:
        shared = nn.Linear(3, 3)
        net = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(3, 3))
        net[3].weight = shared.weight
        return net

    net = base()
    net[2] = nn.Linear(3, 3)
    net[3].weight = nn.Parameter(torch.ones(3, 3))
    again, _ = replayed(net, base)
    x = torch.randn(2, 3)
    assert torch.equal(again(x), net(x))
    assert len({id(p) for p in again.parameters()}) == 6


def test_pruned_heads_of_timm() -> None:
    spec = Timm("vit_tiny_patch16_224")
    module = spec.build(RGB)
    module.blocks = nn.Sequential(module.blocks[0], module.blocks[5])
    attention = module.blocks[0].attn
    kept = list(range(64))
    slim(attention.qkv, [part * 192 + i for part in range(3) for i in kept], None)
    slim(attention.proj, None, kept)
    attention.num_heads, attention.attn_dim = 1, 64
    check(module, spec, RGB)


def test_replaced_dropped_and_reordered_modules() -> None:
    spec = SmallResNet(width=8)
    net = spec.build(IMAGE)
    net.layer1[0].shortcut = nn.Sequential(nn.Conv2d(8, 8, 1), nn.GELU("tanh"))
    net.layer2[0].bn1 = nn.Identity()
    del net.layer2[0].shortcut[1]
    net.layer3[0].relu1 = nn.LeakyReLU(0.3)
    net.layer3[0].conv1.bias = nn.Parameter(torch.randn(32))
    net.head = nn.Sequential(nn.Linear(32, 2, bias=False), nn.Linear(2, 4))
    net.stem = nn.Sequential(net.stem[0], net.stem[2], net.stem[1])
    check(net, spec, IMAGE)


def test_recurrent_layers_of_other_sizes() -> None:
    spec = BiLSTM(embedding=4, hidden=5)
    net = spec.build(TEXT)
    net.layer1.forwards = nn.LSTM(4, 3, batch_first=True)
    net.layer1.backwards = nn.LSTM(4, 7, batch_first=True, bias=False)
    check(net, spec, TEXT)


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def odd_forward(x: Tensor) -> Tensor:
    return x


def test_what_cannot_be_described_is_named() -> None:
    spec = SmallResNet(width=4)
    net = spec.build(IMAGE)
    net.layer2[0].relu1 = Odd()
    with pytest.raises(CannotRebuild, match=r"layer2\.0\.relu1: a .*Odd cannot"):
        describe(net, spec.build(IMAGE))
    net = spec.build(IMAGE)
    parametrizations.weight_norm(net.layer1[0].conv1)
    with pytest.raises(CannotRebuild, match=r"layer1\.0\.conv1"):
        describe(net, spec.build(IMAGE))
    net = spec.build(IMAGE)
    net.head.forward = odd_forward
    with pytest.raises(CannotRebuild, match="head: its forward was replaced by odd_forward"):
        describe(net, spec.build(IMAGE))
    with pytest.raises(CannotRebuild, match=r"the model is a .*Linear, its Spec builds a .*SmallResNetNet"):
        describe(nn.Linear(1, 1), spec.build(IMAGE))
    with pytest.raises(CannotRebuild, match="unknown delta 'teleport'"):
        rebuild(net, [{"op": "teleport", "path": "head"}])


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers() | st.text(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(plain)
def test_plain_data_survives_json(value: object) -> None:
    again = decode(json.loads(json.dumps(encode(value), allow_nan=False)))
    assert again == value
    assert type(again) is type(value)
