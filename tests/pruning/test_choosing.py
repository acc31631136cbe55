"""Which units go: ties, widths that are multiples, groups of unlike sizes, and zeros that training makes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from decoct.pruning._graph import groups_of
from decoct.pruning._masks import Pace
from decoct.pruning._scores import choose, keep_count, weakest
from decoct.pruning.channels import Channels
from decoct.pruning.magnitude import Magnitude
from decoct.training.clock import Clock
from decoct.training.compression import Evidence

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def net(first: int = 16, second: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, first, 3), nn.BatchNorm2d(first), nn.ReLU(), nn.Conv2d(first, second, 3), nn.Conv2d(second, 2, 1)
    )


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.data())
def test_the_lowest_go_and_of_equal_ones_the_later(scores: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(scores)))
    order = sorted(range(len(scores)), key=lambda place: (scores[place], -place))
    assert weakest(np.array(scores, dtype=float), count).tolist() == sorted(order[:count])


def test_of_channels_that_are_all_alike_the_first_stay() -> None:
    module = net()
    with torch.no_grad():
        for layer in (0, 3, 4):
            module[layer].weight.fill_(0.5)
    made = Channels(ratio=0.5, round_to=1).apply(module, Evidence((X,))).module
    assert torch.equal(made[0].bias, module[0].bias[:8])
    assert torch.equal(made[3].bias, module[3].bias[:2])


def test_in_global_scope_a_group_is_measured_by_its_mean_whatever_its_size() -> None:
    """Two of four units lie at three tenths of their group's mean, eight of sixteen at six tenths of theirs.

    Divided by the sum, those of the large group would be the lowest.
    """
    small, large = np.array([2.1, 11.9, 2.1, 11.9]), np.tile([0.6, 1.4], 8)
    large_group, small_group, _ = groups_of(net(), Evidence((X,)), {})
    gone = choose([small_group, large_group], [small, large], 0.1, "global", 1)
    assert [each.tolist() for each in gone] == [[0, 2], []]
    every = np.concatenate([small / small.mean(), large / large.mean()])
    assert sorted(np.argsort(every, kind="stable")[:2].tolist()) == [0, 2]


@given(st.integers(1, 200), st.integers(1, 99), st.integers(1, 16))
def test_widths_are_the_nearest_multiple_and_never_none(size: int, percent: int, step: int) -> None:
    assert [keep_count(24, 0.5, 8), keep_count(40, 0.5, 8), keep_count(5, 0.5, 1)] == [16, 24, 3], "halves up"
    kept = keep_count(size, percent / 100, step)
    if size <= step:
        assert kept == size
        return
    wanted = size * (1 - percent / 100)
    assert kept == size or (kept % step == 0 and step <= kept <= size)
    allowed = [*range(step, size, step), size]
    assert abs(kept - wanted) <= min(abs(each - wanted) for each in allowed) + step / 2 + 1e-9
    if kept < size and kept > step:
        assert abs(kept - wanted) <= step / 2 + 1e-9


@pytest.mark.parametrize("score", ["l2", "bn_scale"])
def test_a_step_beyond_zero_ends_at_zero(score: str) -> None:
    """The threshold of a step is longer than two of the units: they become zero and do not change their sign."""
    module, rate, weight = net(), 0.1, 0.5
    threshold = rate * weight if score == "bn_scale" else rate * weight * np.sqrt(3 * 9 + 4 * 9)
    with torch.no_grad():
        nn.init.normal_(module[1].weight)
        module[1].weight[:2] = torch.tensor([0.5, -0.5]) * threshold
        for layer, unit in ((0, slice(0, 2)), (3, (slice(None), slice(0, 2)))):
            module[layer].weight[unit] *= 1e-3
    signs = module[1].weight.sign()
    callback = Channels(score=score, sparsity=weight).callback(module, Evidence((X,)), 1.0)
    with torch.no_grad():
        callback.after_step(Clock(), torch.optim.SGD(module.parameters(), lr=rate))
    if score == "bn_scale":
        assert module[1].weight[:2].tolist() == [0.0, 0.0]
        assert ((module[1].weight == 0) | (module[1].weight.sign() == signs)).all()
    else:
        assert not module[0].weight[:2].any()
        assert not module[3].weight[:, :2].any()
        assert module[0].weight[2:].any()


def test_a_pace_begins_where_it_says() -> None:
    """After 2 of 8 steps a quarter is done, which is the begin."""
    pace = Pace(begin=0.25, until=0.75, every=1, shape=lambda time: time)
    found = [pace.strength(Clock(step, 0, step / 8)) for step in range(1, 8)]
    assert found == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert pace.strength(Clock(0, 0, 0.0)) is None


def test_masks_are_complete_in_time_whatever_the_interval() -> None:
    """The last step before the end of the pace is due though it is no multiple of the interval."""
    module = nn.Sequential(nn.Linear(8, 8))
    callback = Magnitude(ratio=0.5, every=100).callback(module, Evidence(()), 0.5)
    with torch.no_grad():
        ready = []
        for step in range(7):
            callback.after_step(Clock(step, 0, step / 7), torch.optim.SGD(module.parameters()))
            ready.append(callback.ready)
    assert ready == [False, False, False, True, True, True, True]
    assert int((module[0].weight == 0).sum()) == 32
