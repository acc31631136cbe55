"""Channels: zeros that go change nothing; scores against NumPy; real files; refusals."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from torch import Tensor, nn

import decoct as dc
from decoct.artifact import Artifact, writing
from decoct.errors import PathError, RecipeError
from decoct.meters.parameters import parameters
from decoct.models.attention import SlimAttention
from decoct.models.given import given_model
from decoct.models.saving import load_model, save_model
from decoct.pruning._attention import attentions, with_slim_attention
from decoct.pruning._graph import groups_of
from decoct.pruning._scores import Scores, choose, keep_count
from decoct.pruning.channels import Channels
from decoct.training.clock import Clock
from decoct.training.compression import Evidence, protected
from shipped import written

LAYER_NORM = ("bert_sdpa", "bert_eager", "vit", "timm_vit")
RESIDUAL = {"vit": "conv_proj", "timm_vit": "patch_embed.proj", "bert_sdpa": "*.word_embeddings"}


def evidence(example: Any) -> Evidence:
    return Evidence((), example) if isinstance(example, dict) else Evidence((example,))


def checksum(module: nn.Module) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(name.encode() + tensor.numpy().tobytes())
    return total.hexdigest()


def silence(module: nn.Module, found: Evidence, keep: dict[str, str], ratio: float = 0.5) -> int:
    """Sets all that goes with some units and heads to zero, as many as will be removed; how many."""
    random, count = np.random.default_rng(0), 0
    tensors = dict(module.named_parameters())
    heads = [(each.group, keep_count(each.group.size, ratio, 1)) for each in attentions(module)]
    free = [each for each in groups_of(module, found, keep) if not each.frozen]
    for group, kept in [*heads, *((each, keep_count(each.size, ratio, 8)) for each in free)]:
        gone = random.permutation(group.size)[: group.size - kept]
        count += len(gone)
        for axis, indices in group.axes.items():
            at = np.concatenate([indices[unit] for unit in gone]) if len(gone) else []
            if len(at) and axis.tensor in tensors:
                tensors[axis.tensor].data.index_fill_(axis.dim, torch.as_tensor(at), 0.0)
    return count


@pytest.mark.parametrize("name", zoo.ZOO)
@pytest.mark.parametrize("score", ["l1", "l2"])
def test_channels_of_zeros_leave_the_outputs_as_they_are(name: str, score: str) -> None:
    if score == "l1" and name not in ("small_resnet", "unet", "lstm", "bilstm", "timm_vit"):
        pytest.skip("l2 shows it")
    module, example = zoo.make(name)
    protect = (RESIDUAL.get(name.replace("eager", "sdpa")),) if name in LAYER_NORM else ()
    keep = {path: "protected" for pattern in protect for path in protected(module, [pattern])}
    with_slim_attention(module)
    assert silence(module, evidence(example), keep) > 0
    before = zoo.run(module, example)
    made = Channels(score=score, protect=protect).apply(module, evidence(example))
    assert parameters(made.module).total < parameters(module).total
    assert float(before.std()) > 1e-4
    torch.testing.assert_close(zoo.run(made.module, example), before, atol=5e-5, rtol=1e-5)


def save(folder: Path, module: nn.Module, original: nn.Module, example: Any) -> Artifact:
    with writing(folder, kind="model", name="m") as draft:
        save_model(
            draft,
            module,
            given_model("net", original),
            zoo.IMAGE,
            side="student",
            probe=lambda each: [zoo.run(each, example)],
            given={"net": original},
        )
    return Artifact.load(folder)


def shipped(smaller: nn.Module, example: Any, out: Tensor, folder: Path) -> None:
    """Its ONNX file, run on the example, gives what torch gives."""
    if not isinstance(example, dict):
        record = dc.export(smaller, folder / "m.onnx", example=example)
        assert record["parameters"] == parameters(smaller).total
        assert record["verified"]["max_abs_diff"] < 1e-4
        return
    axes = {each: {0: "batch", 1: "length"} for each in example}
    file = dc.Onnx().load(written(dc.Onnx(), Logits(smaller), example, folder, axes))
    found = file({name: value.numpy() for name, value in example.items()})["logits"]
    np.testing.assert_allclose(found, out.numpy(), atol=1e-4)


class Logits(nn.Module):
    """The logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        out = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return out if isinstance(out, Tensor) else out.logits


@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_pruned_network_is_smaller_plain_saved_and_shipped(name: str, tmp_path: Path) -> None:
    module, example = zoo.make(name)
    before = checksum(module)
    smaller = dc.prune(module, example=example, ratio=0.5)
    assert checksum(module) == before
    assert parameters(smaller).total < (0.7 if name == "shufflenet" else 0.5) * parameters(module).total
    out = zoo.run(smaller, example)
    assert out.isfinite().all()
    assert out.shape == zoo.run(module, example).shape
    again = load_model(save(tmp_path / "a", smaller, module, example), given={"net": module}).module
    assert torch.equal(zoo.run(again, example), out)
    shipped(smaller, example, out, tmp_path)
    assert not any(isinstance(each, nn.MultiheadAttention) for each in smaller.modules())


def test_the_groups_of_a_residual_net_are_those_of_torch_pruning() -> None:
    tp = pytest.importorskip("torch_pruning")
    for name in ("resnet18", "mobilenet_v3_small"):
        module, example = zoo.make(name)
        mine = {
            frozenset(axis.tensor.removesuffix(".weight") for axis in each.roots)
            for each in groups_of(module, evidence(example), {})
        }
        graph = tp.DependencyGraph().build_dependency(module, example_inputs=example)
        names = {each: path for path, each in module.named_modules()}
        theirs = set()
        for group in graph.get_all_groups():
            outs = [dep.target.module for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)]
            theirs.add(frozenset(names[each] for each in outs if isinstance(each, nn.Conv2d | nn.Linear)))
        assert mine == theirs


def conv_net() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(32, 4)
    )
    nn.init.normal_(net[1].weight)
    return net, torch.randn(5, 3, 6, 6)


@pytest.mark.parametrize("score", ["l1", "l2", "taylor", "bn_scale"])
def test_scores_are_those_of_numpy(score: str) -> None:
    net, x = conv_net()
    batches = [(x, torch.tensor([0, 1, 2, 3, 0])), (x * 2, torch.tensor([1, 1, 2, 0, 0]))]

    def losses(module: nn.Module) -> list[Tensor]:
        return [nn.functional.cross_entropy(module(inputs), target) for inputs, target in batches]

    seen = Evidence((x,), losses=lambda module: iter(losses(module)))
    first, second, last = groups_of(net, seen, {})
    assert last.frozen == "it is an output of the network"
    a, b = (net[i].weight.detach().double().numpy() for i in (0, 3))
    c = net[5].weight.detach().double().numpy().reshape(4, 8, 4)
    net.eval()
    if score == "taylor":
        expected = np.zeros(16)
        for loss in losses(net):
            parts = torch.autograd.grad(loss, [net[0].weight, net[3].weight])
            ga, gb = (each.double().numpy() for each in parts)
            expected += ((a * ga).sum((1, 2, 3)) ** 2 + (b * gb).sum((0, 2, 3)) ** 2) / 2
    elif score == "bn_scale":
        expected = net[1].weight.detach().abs().numpy()
    elif score == "l1":
        expected = np.abs(a).sum((1, 2, 3)) + np.abs(b).sum((0, 2, 3))
    else:
        expected = np.sqrt((a**2).sum((1, 2, 3)) + (b**2).sum((0, 2, 3)))
    scores = Scores(net, score, seen)
    np.testing.assert_allclose(scores.of(first), expected, rtol=1e-5)
    if score == "l1":
        np.testing.assert_allclose(scores.of(second), np.abs(b).sum((1, 2, 3)) + np.abs(c).sum((0, 2)), rtol=1e-5)
    if score == "bn_scale":
        assert scores.of(second) is None
    made = Channels(score=score).apply(net, seen)
    kept = np.sort(np.argsort(expected)[8:])
    assert torch.equal(made.module[1].bias, net[1].bias[torch.as_tensor(kept)])
    assert [(each.path, each.before, each.after) for each in made.changes] == [("0", 16, 8), ("3", 8, 8), ("5", 4, 4)]


def test_global_scope_takes_the_lowest_of_all() -> None:
    net, x = conv_net()
    nn.init.constant_(net[0].weight, 0.01)
    net[0].weight.data[12:] = 1.0
    first, second, _ = groups_of(net, Evidence((x,)), {})
    scores = [Scores(net, "l2", Evidence((x,))).of(each) for each in (first, second)]
    units = choose([first, second], scores, 0.5, "global", 1)
    relative = np.concatenate([each / each.mean() for each in scores])
    lowest = set(np.argsort(relative)[:12].tolist())
    assert {*units[0].tolist(), *(16 + units[1]).tolist()} == lowest
    made = Channels(scope="global", round_to=4).apply(net, Evidence((x,)))
    assert {each.after % 4 for each in made.changes} == {0}


def test_protected_layers_stay_and_say_so() -> None:
    module, example = zoo.make("small_resnet")
    made = Channels(protect=("layer1*", "layer3.0.conv1")).apply(module, evidence(example))
    by_path = {each.path: each for each in made.changes}
    assert by_path["layer1.0.conv1"].note == by_path["layer3.0.conv1"].note == by_path["stem.0"].note == "protected"
    assert (by_path["layer3.0.conv2"].before, by_path["layer3.0.conv2"].after) == (64, 32)
    assert torch.equal(made.module.layer1[0].conv1.weight, module.layer1[0].conv1.weight)
    assert by_path["head"].note == "it is an output of the network"


def test_a_size_written_into_the_forward_pass_is_named() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 16), nn.Linear(16, 32), nn.Linear(32, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x).relu()) * torch.ones(32))

    made = Channels().apply(Fixed(), Evidence((torch.ones(2, 4),)))
    found = {each.path: each for each in made.changes}
    assert (found["a"].after, found["b"].after) == (8, 32)
    assert "written into the forward pass" in found["b"].note


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ratio": 1.0}, "ratio"),
        ({"ratio": 0.0}, "ratio"),
        ({"ratio": -1}, "ratio"),
        ({"score": "l3"}, "score"),
        ({"round_to": 0}, "round_to"),
        ({"round_to": 64}, "nothing can be pruned at ratio 0.5 .*multiples of 64.*lower round_to"),
        ({"protect": ("laier1",)}, "no module 'laier1'; did you mean layer1"),
        ({"protect": ("*",)}, "nothing can be pruned.*protected"),
        ({"score": "taylor"}, "taylor needs losses on data"),
        ({"scheme": dc.Heads()}, "heads: no attention module that decoct knows"),
        ({"scheme": dc.Layers(protect=("layer1", "layer2", "layer3"))}, "layers: nothing can go"),
        ({"scheme": dc.Heads(), "ratio": 0.3}, "brings its own settings"),
    ],
)
def test_refusals_name_the_setting_and_change_nothing(fields: dict[str, Any], words: str) -> None:
    module, example = zoo.make("small_resnet")
    before = checksum(module)
    with pytest.raises((RecipeError, PathError), match=words):
        dc.prune(module, example=example, **fields)
    assert checksum(module) == before


def rounds(scheme: Channels, module: nn.Module, evidence: Evidence, count: int) -> nn.Module:
    """The module after all rounds, as recover: iterative makes them."""
    first = ()
    for number in range(1, count + 1):
        stage = scheme.stage(number, count)
        made = (stage.following(first) if number > 1 else stage).apply(module, evidence)
        first, module = first or made.changes, made.module
    return module


@pytest.mark.parametrize(("ratio", "count"), [(0.75, 2), (0.5, 3), (0.3, 4)])
def test_rounds_end_at_the_widths_of_the_whole(ratio: float, count: int) -> None:
    """Rounded to 8 each time, widths of rounds that take a share of what is left drift away."""
    torch.manual_seed(0)
    widths = [24, 40, 56, 72, 8]
    layers = [nn.Sequential(nn.Conv2d(i, o, 1), nn.ReLU()) for i, o in pairwise([3, *widths])]
    module, example = nn.Sequential(*layers, nn.Conv2d(8, 2, 1)), torch.randn(2, 3, 4, 4)
    once = Channels(ratio=ratio).apply(module, Evidence((example,))).module
    made = rounds(Channels(ratio=ratio), module, Evidence((example,)), count)
    assert [each[0].out_channels for each in made[:-1]] == [each[0].out_channels for each in once[:-1]]


def test_rounds_of_all_channels_together_end_at_the_share_of_the_first() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 60, 1), nn.ReLU(), nn.Conv2d(60, 40, 1), nn.ReLU(), nn.Conv2d(40, 2, 1))
    scheme = Channels(ratio=0.4, scope="global", round_to=1)
    made = rounds(scheme, module, Evidence((torch.randn(2, 3, 4, 4),)), 3)
    assert made[0].out_channels + made[2].out_channels == pytest.approx(60, abs=1)


def test_a_slim_attention_is_the_attention_it_came_from() -> None:
    torch.manual_seed(0)
    for first in (True, False):
        full = nn.MultiheadAttention(16, 4, batch_first=first, bias=first).eval()
        slim = SlimAttention.of(full)
        x = torch.randn(3, 5, 16)
        padding = torch.zeros((3, 5) if first else (5, 3), dtype=torch.bool)
        padding[:, -1] = True
        causal = torch.ones(5, 5).triu(1).bool() if first else torch.zeros(3, 3)
        for mask in (
            {},
            {"key_padding_mask": padding},
            {"key_padding_mask": padding, "attn_mask": causal.float() * -9},
        ):
            expected, found = full(x, x, x, need_weights=False, **mask)[0], slim(x, x, x, **mask)[0]
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("score", ["l2", "bn_scale"])
def test_the_callback_takes_the_proximal_step(score: str) -> None:
    net, x = conv_net()
    rate, weight = 0.1, 0.5
    scheme = Channels(score=score, sparsity=weight)
    a, scale, b = (net[i].weight.detach().double().numpy().copy() for i in (0, 1, 3))
    callback = scheme.callback(net, Evidence((x,)), 1.0)
    assert callback.ready
    with torch.no_grad():
        logged = callback.after_step(Clock(0, 0, 0.0), torch.optim.SGD(net.parameters(), lr=rate))
    if score == "bn_scale":
        expected = np.sign(scale) * np.maximum(np.abs(scale) - rate * weight, 0)
        np.testing.assert_allclose(net[1].weight.detach(), expected, atol=1e-6)
        assert float(logged["zero_scales"]) == pytest.approx((expected == 0).mean())
        return
    norms = np.sqrt((a**2).sum((1, 2, 3)) + (b**2).sum((0, 2, 3)))
    factors = np.maximum(0, 1 - rate * weight * np.sqrt(27 + 72) / norms)
    np.testing.assert_allclose(net[0].weight.detach(), a * factors[:, None, None, None], atol=1e-6)
    np.testing.assert_allclose(net[3].weight.detach(), b * factors[None, :, None, None], atol=1e-6)
    assert float(logged["zero_channels"]) == pytest.approx((factors == 0).mean())
