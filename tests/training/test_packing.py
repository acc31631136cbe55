import json
import random

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from safetensors.torch import load, save
from torch import nn
from training_toy import equal_states

from decoct.training.packing import pack, unpack
from decoct.training.state import Randomness

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
keys = st.integers() | st.text() | st.booleans() | st.none() | st.tuples(st.integers(), st.text())
nested = st.recursive(
    plain, lambda inner: st.lists(inner) | st.dictionaries(keys, inner) | st.lists(inner).map(tuple), max_leaves=20
)


def through_files(value):
    data, tensors = pack(value)
    return unpack(json.loads(json.dumps(data, allow_nan=False)), load(save(tensors)))


@given(nested)
def test_plain_data_comes_back_equal_and_of_equal_type(value):
    back = through_files(value)
    assert back == value
    assert repr(back) == repr(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8, torch.float64])
def test_tensors_come_back_bit_for_bit(dtype):
    value = {"a": (torch.arange(6).reshape(2, 3).to(dtype), [torch.ones((), dtype=dtype)]), 3: torch.empty(0, 4)}
    assert equal_states(through_files(value), value)


def test_views_transposes_and_tied_weights():
    base = torch.randn(4, 6)
    value = {"view": base[1:3], "transposed": base.t(), "tied": [base, base], "whole": base}
    data, tensors = pack(value)
    assert len(tensors) == 3
    assert equal_states(unpack(data, load(save(tensors))), value)


def test_a_copy_shares_no_memory():
    weight = torch.zeros(3)
    data, tensors = pack({"w": weight}, copy=True)
    weight += 1
    assert unpack(data, tensors)["w"].tolist() == [0, 0, 0]


def test_not_a_number_and_infinities():
    back = through_files([float("nan"), float("inf"), -float("inf"), np.float64(1.5), np.arange(3, dtype=np.uint64)])
    assert back[0] != back[0]
    assert back[1:4] == [float("inf"), -float("inf"), 1.5]
    assert back[4].dtype == np.uint64


def test_what_cannot_be_kept_is_named():
    with pytest.raises(TypeError, match="optimizer/0 is a set"):
        pack({"optimizer": [{1, 2}]})


def test_random_state_of_all_generators_comes_back():
    randomness = Randomness()
    state = through_files(randomness.state_dict())
    drawn = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()
    randomness.load_state_dict(state)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == drawn


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
def test_optimizers_go_on_as_if_never_saved(kind):
    def steps(net, optimizer, count):
        for i in range(count):
            optimizer.zero_grad()
            net(torch.full((2, 3), float(i))).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    a = nn.Linear(3, 2)
    b = nn.Linear(3, 2)
    extra = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    one, two = (kind(net.parameters(), lr=0.01, **extra) for net in (a, b))
    steps(a, one, 3)
    state = through_files({"net": a.state_dict(), "optimizer": one.state_dict()})
    b.load_state_dict(state["net"])
    two.load_state_dict(state["optimizer"])
    steps(a, one, 3)
    steps(b, two, 3)
    assert equal_states(a.state_dict(), b.state_dict())
    assert equal_states(one.state_dict(), two.state_dict())
