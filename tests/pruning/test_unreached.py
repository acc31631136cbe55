"""Branches that only training runs are followed; modules that nothing reached are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import decoct as dc
from decoct.errors import RecipeError
from decoct.meters.parameters import parameters
from decoct.models.modes import training_branches
from decoct.pruning.layers import Layers
from decoct.training.compression import Evidence


class Auxiliary(nn.Module):
    """A head beside the trunk that only training runs, as GoogLeNet's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(32, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU())
        self.side = nn.Sequential(nn.Conv2d(32, 24, 1), nn.ReLU())
        self.aux = nn.Linear(24, 4)
        self.head = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        logits = self.head(self.body(x).mean((2, 3)))
        return (logits, self.aux(self.side(x).mean((2, 3)))) if self.training else logits


class Experts(nn.Module):
    """One expert works where a batch has numbers above 0 in front, the other where it has some below."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 32)
        self.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.head = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).relu()
        out = h
        for expert, chosen in zip(self.experts, (x[:, 0].min() < 0, x[:, 0].max() > 0), strict=True):
            if chosen:
                out = out + expert(h)
        logits: Tensor = self.head(out.relu())
        return logits


class Blocks(nn.Module):
    """Training reads the fourth block by its number."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(4))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        for each in self.blocks:
            x = each(x)
        if self.training:
            x = x + 1e-3 * self.blocks[3](x)
        logits: Tensor = self.head(x)
        return logits


def filled(module: nn.Module) -> nn.Module:
    """Its normalization as after some training."""
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            nn.init.normal_(each.running_mean)
            nn.init.uniform_(each.weight, 0.5, 2)
    return module


def test_a_branch_of_training_is_cut_with_what_feeds_it() -> None:
    torch.manual_seed(0)
    net, x = filled(Auxiliary()), torch.randn(2, 3, 8, 8)
    before = {name: each.clone() for name, each in net.state_dict().items()}
    small = dc.prune(net, example=x)
    assert all(torch.equal(each, before[name]) for name, each in net.state_dict().items())
    widths = [small.get_submodule(path).out_channels for path in ("stem.0", "body.0", "side.0")]
    assert widths == [16, 24, 16]
    assert (small.aux.in_features, small.head.in_features) == (16, 24)
    logits, aux = small.train()(x)
    (logits.sum() + aux.sum()).backward()
    assert all(each.grad is not None for each in small.parameters())


def test_zeroed_channels_of_both_branches_change_nothing() -> None:
    """What goes is weighted by 0 in every layer that reads it, so that the whole net gives what the small one gives."""
    torch.manual_seed(0)
    net, x = Auxiliary(), torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        for path in ("stem.0", "body.0", "side.0"):
            layer = net.get_submodule(path)
            layer.weight[::2], layer.bias[::2] = 0, 0
        for path in ("stem.1", "body.1"):
            norm = net.get_submodule(path)
            norm.weight[::2], norm.bias[::2] = 0, 0
    small = dc.prune(net, example=x, round_to=4)
    assert parameters(small).total < parameters(net).total
    with torch.no_grad(), training_branches(net), training_branches(small):
        for ours, theirs in zip(small(x), net(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_experts_that_no_sample_chose_are_named() -> None:
    torch.manual_seed(0)
    net, x = Experts(), torch.randn(8, 4)
    with pytest.raises(RecipeError, match=r"reached experts\.0 neither .*example.*protect"):
        dc.prune(net, example=x.abs())
    small = dc.prune(net, example=x)
    assert [tuple(each.weight.shape) for each in small.experts] == [(16, 16), (16, 16)]
    small.train()(x).sum().backward()
    kept = dc.prune(net, example=x.abs(), protect=("experts.0", "stem"))
    assert tuple(kept.experts[0].weight.shape) == (32, 32)
    assert kept.head[0].out_features == 8
    kept(x).sum().backward()


def test_a_branch_of_training_that_the_example_cannot_run_is_named() -> None:
    class Wants(Auxiliary):
        def forward(self, x: Tensor, target: Any = None) -> Any:
            if self.training and target is None:
                raise ValueError("targets should not be none when in training mode")
            return super().forward(x)

    with pytest.raises(RecipeError, match=r"reached side\.0, aux neither"):
        dc.prune(Wants(), example=torch.randn(2, 3, 8, 8))


def test_layers_that_training_names_are_not_removed() -> None:
    torch.manual_seed(0)
    with pytest.raises(RecipeError, match=r"does not run .*protect"):
        Layers(ratio=0.5).apply(Blocks(), Evidence((torch.randn(2, 8),)))


def test_a_branch_of_training_runs_after_other_schemes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = dc.prune(Auxiliary(), example=torch.randn(2, 3, 8, 8), scheme="channels")
    small.train()(torch.randn(2, 3, 8, 8))


def test_modes_buffers_and_random_numbers_are_put_back() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.seen = self.seen + len(x)
            return self.norm(x) + torch.rand(1)

    net = Counts().train()
    seen, state = net.seen, torch.get_rng_state()
    with training_branches(net):
        assert (net.training, net.norm.training) == (True, False)
        net(torch.ones(1, 2))
    assert net.norm.training
    assert net.seen is seen
    assert net.seen.item() == 0
    assert torch.equal(torch.get_rng_state(), state)
