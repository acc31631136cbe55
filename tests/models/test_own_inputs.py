"""Modules that write into what they take get inputs of their own; others see what the data say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.models.own_inputs import copy_of, with_own_inputs


class Seen(nn.Module):
    """Remembers what it was given, by identity."""

    def __init__(self, write: Any = None) -> None:
        super().__init__()
        self.write, self.given = write, list[Any]()

    def forward(self, x: Any) -> Any:
        self.given.append(x)
        if self.write is not None:
            self.write(x)
        return x


def past_the_counter(x: Tensor) -> None:
    x.data.mul_(2)


@pytest.mark.parametrize("write", [lambda x: x.sub_(1), lambda x: x[0].zero_(), past_the_counter])
def test_what_a_module_writes_stays_with_it(write: Any) -> None:
    net, x = Seen(write), torch.ones(2, 3)
    for _ in range(3):
        with_own_inputs(net, net, x, x)
    assert torch.equal(x, torch.ones(2, 3))
    assert not any(each is x for each in net.given)


def test_a_module_that_does_not_write_is_given_the_inputs_themselves() -> None:
    net, x = Seen(), torch.tensor([float("nan"), 1.0])
    for _ in range(3):
        with_own_inputs(net, net, x, x)
    assert [each is x for each in net.given] == [False, True, True]


def test_each_mode_is_looked_at() -> None:
    net = nn.Sequential(nn.Dropout(1.0, inplace=True))
    x = torch.ones(4)
    for mode in (False, True, False, True):
        net.train(mode)
        with_own_inputs(net, net, x, x)
    assert torch.equal(x, torch.ones(4))


def test_nested_inputs_and_arrays_are_copied() -> None:
    given = {"a": (torch.ones(2), [np.ones(2)]), "text": "as it is"}

    def write(x: Any) -> None:
        x["a"][0].zero_()
        x["a"][1][0][:] = 0

    net = Seen(write)
    with_own_inputs(net, net, given, given)
    assert given["a"][0].tolist() == given["a"][1][0].tolist() == [1, 1]
    assert copy_of(given)["text"] == "as it is"


def test_gradients_reach_the_inputs_through_the_copy() -> None:
    net, x = nn.Sequential(nn.ReLU(inplace=True)), torch.tensor([-1.0, 2.0], requires_grad=True)
    for _ in range(2):
        (found,) = torch.autograd.grad(with_own_inputs(net, net, x, x).sum(), x)
        assert found.tolist() == [0, 1]


def test_one_that_writes_only_later_is_refused() -> None:
    net, x = Seen(), torch.ones(2)
    with_own_inputs(net, net, x, x)
    net.write = lambda x: x.zero_()
    with pytest.raises(RecipeError, match=r"Seen wrote into its inputs .* x = x\.clone\(\)"):
        with_own_inputs(net, net, x, x)


def test_inference_tensors_are_taken() -> None:
    with torch.inference_mode():
        x = torch.ones(2)
        net = Seen(lambda x: x.zero_())
        with_own_inputs(net, net, x, x)
        with_own_inputs(net, net, x, x)
    assert x.tolist() == [1, 1]
