"""Heads and layers: zeros that go change nothing; scores against NumPy; what libraries keep as numbers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import zoo
from torch import nn

import decoct as dc
from decoct.errors import RecipeError
from decoct.models.given import given_model
from decoct.models.saving import load_model, save_model
from decoct.pruning._attention import attentions, with_slim_attention
from decoct.pruning.heads import Heads
from decoct.pruning.layers import Layers
from decoct.training.compression import Evidence

TRANSFORMERS = ("bert_sdpa", "bert_eager", "vit", "timm_vit")


def evidence(example: object) -> Evidence:
    return Evidence((), example) if isinstance(example, dict) else Evidence((example,))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_heads_of_zeros_leave_the_outputs_as_they_are(name: str) -> None:
    module, example = zoo.make(name)
    with_slim_attention(module)
    tensors, kept = dict(module.named_parameters()), {}
    for each in attentions(module):
        silent = [0] if each.group.size == 3 else [0, 2]
        kept[each.path] = each.group.size - len(silent)
        for axis, indices in each.group.axes.items():
            at = torch.as_tensor(np.concatenate([indices[head] for head in silent]))
            tensors[axis.tensor].data.index_fill_(axis.dim, at, 0.0)
    before = zoo.run(module, example)
    made = Heads().apply(module, evidence(example))
    assert {each.path: each.after for each in made.changes} == kept
    assert len(kept) == 2
    torch.testing.assert_close(zoo.run(made.module, example), before, atol=1e-5, rtol=1e-5)


def test_numbers_of_libraries_are_set() -> None:
    module, example = zoo.make("bert_sdpa")
    smaller = dc.prune(module, example=example, ratio=0.5)
    attention = smaller.bert.encoder.layer[0].attention.self
    assert (attention.num_attention_heads, attention.attention_head_size, attention.all_head_size) == (2, 16, 32)
    config = smaller.config
    assert (config.num_attention_heads, config.hidden_size, config.intermediate_size) == (2, 32, 64)
    assert (module.config.num_attention_heads, module.config.hidden_size) == (4, 64)
    assert smaller.bert.encoder.layer[0].attention.output.dense.weight.shape == (32, 32)
    module, example = zoo.make("timm_vit")
    found = dc.prune(module, example=example, scheme=Heads(ratio=0.6)).blocks[0].attn
    assert (found.num_heads, found.head_dim, found.attn_dim) == (1, 64, 64)
    module, example = zoo.make("vit")
    assert dc.prune(module, example=example).hidden_dim == 32


def test_a_distilled_bert_loses_heads_too() -> None:
    config = {"model_type": "distilbert", "dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 64}
    module, example = dc.Transformers(config=config).build(zoo.TEXT).eval(), zoo.ids()
    smaller = dc.prune(module, example=example)
    assert smaller.distilbert.transformer.layer[0].attention.n_heads == 2
    assert zoo.run(smaller, example).isfinite().all()


def test_the_taylor_score_of_heads_is_that_of_numpy() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(8, 8), Attending(), nn.Linear(8, 2)).eval(), torch.randn(4, 3, 8)
    part = net[1].attention

    def loss(module: nn.Module) -> torch.Tensor:
        return module(x).square().mean()

    grads = torch.autograd.grad(loss(net), [part.in_proj_weight, part.out_proj.weight])
    inner = (part.in_proj_weight * grads[0]).detach().double().numpy().reshape(3, 4, 2, 8).sum((0, 2, 3))
    outer = (part.out_proj.weight * grads[1]).detach().double().numpy().reshape(8, 4, 2).sum((0, 2))
    stay = np.sort(np.argsort(inner**2 + outer**2)[2:])
    smaller = dc.prune(net, example=x, scheme=Heads(score="taylor"), loss=loss)
    expected = part.out_proj.weight.reshape(8, 4, 2)[:, torch.as_tensor(stay)].reshape(8, 4)
    assert torch.equal(smaller[1].attention.out_proj.weight, expected)


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.attention(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("name", ["bert_sdpa", "vit", "timm_vit"])
def test_a_block_that_does_nothing_goes_first(name: str, tmp_path) -> None:
    module, example = zoo.make(name)
    paths = {"bert_sdpa": "bert.encoder.layer", "vit": "encoder.layers", "timm_vit": "blocks"}
    holder = module.get_submodule(paths[name])
    first = next(iter(holder._modules))
    if name == "bert_sdpa":
        for each in holder[0].modules():
            if isinstance(each, nn.Linear):
                nn.init.zeros_(each.weight)
                nn.init.zeros_(each.bias)
    else:
        for parameter in holder._modules[first].parameters():
            nn.init.zeros_(parameter)
    original = copy.deepcopy(module)
    before = zoo.run(module, example)
    made = Layers().apply(module, evidence(example))
    assert [(each.path, each.after) for each in made.changes] == [
        (f"{paths[name]}.{key}", int(key != first)) for key in holder._modules
    ]
    torch.testing.assert_close(zoo.run(made.module, example), before, atol=1e-5, rtol=1e-5)
    with dc_writing(tmp_path / "a") as draft:
        spec, probe = given_model("net", original), lambda each: [zoo.run(each, example)]
        save_model(draft, made.module, spec, zoo.IMAGE, side="student", probe=probe, given={"net": original})
    again = load_model(dc.Artifact.load(tmp_path / "a"), given={"net": original}).module
    assert torch.equal(zoo.run(again, example), zoo.run(made.module, example))


def dc_writing(folder):
    from decoct.artifact import writing

    return writing(folder, kind="model", name="m")


def chain(blocks: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), *[nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(blocks)])


def test_scores_of_blocks() -> None:
    net, x = chain(5), torch.randn(6, 3)
    a, distances, taylor = net[0](x), [], []
    for block in net[1:]:
        b = block(a)
        distances.append(float((b - a).norm() / a.norm()))
        a = b
    for block in net[1:]:
        loss = net(x).square().mean()
        grads = torch.autograd.grad(loss, list(block.parameters()))
        taylor.append(sum(float((p * g).abs().sum()) for p, g in zip(block.parameters(), grads)))
    for score, values in (("output", distances), ("taylor", taylor)):
        found = Layers(ratio=0.4, score=score).apply(
            net, Evidence((x,), losses=lambda module: iter([module(x).square().mean()]))
        )
        gone = {int(each.path) - 1 for each in found.changes if not each.after}
        assert gone == set(np.argsort(values)[:2].tolist())
    even = Layers(ratio=0.4, score="even").apply(net, Evidence((x,)))
    assert [each.after for each in even.changes] == [1, 0, 1, 0, 1]
    kept = Layers(ratio=0.4, score="even", protect=("2",)).apply(net, Evidence((x,)))
    assert [(each.after, each.note) for each in kept.changes][1] == (1, "protected")
    assert sum(each.after for each in kept.changes) == 3, "protection leaves the number that goes as it is"


def test_residual_blocks_of_one_shape_go_and_others_stay() -> None:
    module, example = zoo.make("resnet18")
    made = Layers(ratio=0.5).apply(module, evidence(example))
    assert {each.path for each in made.changes} == {"layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"}
    assert sum(each.after for each in made.changes) == 2
    assert zoo.run(made.module, example).isfinite().all()


def test_one_head_and_one_block_stay() -> None:
    module, example = zoo.make("vit")
    smaller = dc.prune(module, example=example, scheme=Heads(ratio=0.99))
    assert smaller.encoder.layers[0].self_attention.num_heads == 1
    with pytest.raises(RecipeError, match=r"heads: nothing can go.*protected"):
        dc.prune(module, example=example, scheme=Heads(protect=("encoder",)))
    assert len(dc.prune(module, example=example, scheme=Layers(ratio=0.99)).encoder.layers) == 1


def in_rounds(scheme: Heads | Layers, module: nn.Module, evidence: Evidence, count: int) -> list[list[int]]:
    """What is left of each layer after each round, as recover: iterative makes them."""
    first, left = (), []
    for number in range(1, count + 1):
        stage = scheme.stage(number, count)
        made = (stage.following(first) if number > 1 else stage).apply(module, evidence)
        first, module = first or made.changes, made.module
        left.append([each.after for each in made.changes])
    return left


def test_rounds_end_where_one_does() -> None:
    x = torch.randn(6, 3)
    left = in_rounds(Layers(ratio=0.5), chain(6), Evidence((x,)), 4)
    assert [sum(each) for each in left] == [5, 4, 4, 3]
    assert sum(each.after for each in Layers(ratio=0.5).apply(chain(6), Evidence((x,))).changes) == 3
    module, example = zoo.make("vit")
    once = Heads(ratio=0.5).apply(module, evidence(example))
    left = in_rounds(Heads(ratio=0.5), module, evidence(example), 3)
    assert left[-1] == [each.after for each in once.changes]
    with pytest.raises(RecipeError, match=r"nothing can go.*protected"):
        Heads(protect=("encoder",)).stage(1, 3).apply(module, evidence(example))
