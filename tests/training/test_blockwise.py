"""Blockwise: each block's gradient is its own, the error is the relative one, windows add up."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from decoct.capture import recorded
from decoct.errors import PathError
from decoct.outputs import Batch
from decoct.training.blockwise import Block, Blockwise, Calls
from decoct.training.clock import Clock

PATHS = ("0", "2")


def nets() -> tuple[nn.Sequential, nn.Sequential]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))
    other = copy.deepcopy(net)
    with torch.no_grad():
        for each in other.parameters():
            each.add_(0.3 * torch.randn_like(each))
    return net, other


def reference(net: nn.Module, batch: Batch) -> Calls:
    with torch.no_grad(), recorded(net, PATHS) as calls:
        net(batch.side("student"))
    return calls


def blockwise(net: nn.Module, student: nn.Module, lr: float = 0.1) -> Blockwise:
    blocks = {path: Block(student.get_submodule(path), scale=2.0) for path in PATHS}
    optimizer = torch.optim.SGD(student.parameters(), lr=lr)
    return Blockwise(lambda batch: reference(net, batch), blocks, optimizer)


def batch(x: Tensor) -> Batch:
    return Batch({"student": x})


def test_each_block_descends_its_own_error() -> None:
    """Against each block trained alone by hand, on inputs of the reference, not of the student."""
    net, student = nets()
    x = torch.randn(6, 4)
    alone = copy.deepcopy(student)
    hidden = net[0](x).detach()
    for layer, taken, given in ((alone[0], x, hidden), (alone[2], hidden.relu(), net(x).detach())):
        loss = (layer(taken) - given).square().mean() / 2.0
        grads = torch.autograd.grad(loss, list(layer.parameters()))
        with torch.no_grad():
            for each, grad in zip(layer.parameters(), grads):
                each.sub_(0.1 * grad)
    logged = blockwise(net, student)([batch(x)], Clock())
    assert set(logged) == {"loss", "blocks.0", "blocks.2"}
    assert logged["loss"] == pytest.approx(float(logged["blocks.0"] + logged["blocks.2"]))
    for mine, theirs in zip(student.parameters(), alone.parameters()):
        torch.testing.assert_close(mine, theirs)


def test_windows_add_up() -> None:
    net, student = nets()
    x = torch.randn(7, 4)
    split = copy.deepcopy(student)
    whole = blockwise(net, student)([batch(x)], Clock())
    parts = blockwise(net, split)([batch(x[:5]), batch(x[5:])], Clock())
    for mine, theirs in zip(student.parameters(), split.parameters()):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(whole["blocks.2"], parts["blocks.2"])


def test_equal_blocks_have_no_error_and_silent_ones_their_mean_square() -> None:
    net, _ = nets()
    x = torch.randn(6, 4)
    call = reference(net, batch(x))["2"]
    assert Block(net[2]).error(call).item() == 0
    silent = nn.Linear(5, 3)
    nn.init.zeros_(silent.weight)
    nn.init.zeros_(silent.bias)
    assert Block(silent, call.output.square().mean().item()).error(call).item() == pytest.approx(1)


class Two(nn.Module):
    """Takes a mask by name, changes its input in place and gives a tuple."""

    def forward(self, x: Tensor, *, mask: Tensor) -> tuple[Tensor, None]:
        return x.mul_(mask), None


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Two()

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.inner(x + 1, mask=x > 0)
        return y.neg_()


def test_calls_are_kept_whole_and_before_they_are_changed() -> None:
    net, x = Around(), torch.tensor([-2.0, 3.0])
    with recorded(net, ["inner"]) as calls:
        net(x)
    assert calls["inner"].args[0].tolist() == [-1.0, 4.0]
    assert calls["inner"].kwargs["mask"].tolist() == [False, True]
    assert calls["inner"].output[0].tolist() == [0.0, 4.0]
    assert Block(net.inner).error(calls["inner"]).item() == 0
    assert not net.inner._forward_hooks
    assert not net.inner._forward_pre_hooks
    with pytest.raises(PathError, match="no module 'iner'; did you mean inner"), recorded(net, ["iner"]):
        pass
