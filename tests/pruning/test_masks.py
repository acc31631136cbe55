"""Masks against loops in NumPy, schedules against their closed form, callbacks against training by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from decoct.errors import PathError, RecipeError
from decoct.pruning._masks import prunable, smallest_out
from decoct.pruning.magnitude import Magnitude
from decoct.pruning.movement import Movement
from decoct.pruning.n_m import NM, largest_of
from decoct.training.clock import Clock
from decoct.training.compression import Evidence

NONE = Evidence(())


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(12, 16), nn.Linear(16, 3)
    )


def clocks(steps: int):
    return [Clock(step, 0, step / steps) for step in range(steps)]


def zeros(module: nn.Module) -> int:
    return sum(int((each == 0).sum()) for each in prunable(module).values())


numbers = st.lists(st.integers(-5, 5), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=4), st.floats(0, 0.99), st.sampled_from(["global", "layer"]))
def test_the_smallest_are_left_out_and_of_equal_ones_the_first(layers, ratio, scope):
    scores = {str(i): torch.tensor(each, dtype=torch.float64) for i, each in enumerate(layers)}
    masks = smallest_out(scores, ratio, scope)
    groups = [[(name, i) for i in range(len(each))] for name, each in scores.items()]
    if scope == "global":
        groups = [[place for each in groups for place in each]]
    for places in groups:
        order = sorted(places, key=lambda place: scores[place[0]][place[1]].item())
        out = set(order[: round(ratio * len(places))])
        assert all(bool(masks[name][i]) == ((name, i) not in out) for name, i in places)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_magnitude_leaves_plain_layers_with_the_share_of_zeros(scope):
    module = net()
    whole = {name: each.detach().clone() for name, each in module.named_parameters()}
    made = Magnitude(ratio=0.7, scope=scope).apply(module, NONE)
    weights = {name: each.detach().numpy() for name, each in prunable(made.module).items()}
    assert set(weights) == {"0.weight", "4.weight", "5.weight"}
    total = sum(each.size for each in weights.values())
    if scope == "global":
        assert zeros(made.module) == round(0.7 * total)
        flat = np.sort(np.concatenate([np.abs(whole[name].numpy()).ravel() for name in weights]))
        bound = flat[round(0.7 * total) - 1]
    for name, each in weights.items():
        before = np.abs(whole[name].numpy())
        limit = bound if scope == "global" else np.sort(before.ravel())[round(0.7 * before.size) - 1]
        assert ((each == 0) == (before <= limit)).all()
        assert (each[each != 0] == whole[name].numpy()[each != 0]).all()
    assert {change.path: change.after for change in made.changes} == {
        name.removesuffix(".weight"): int((each != 0).sum()) for name, each in weights.items()
    }
    assert [type(each) for each in made.module] == [type(each) for each in module]
    for name, each in module.named_parameters():
        assert torch.equal(each, whole[name])
        if name not in weights:
            assert torch.equal(made.module.get_parameter(name), each)


def test_what_is_protected_or_an_embedding_stays():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.middle, self.out = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False)
            self.rnn, self.attention = nn.LSTM(4, 4), nn.MultiheadAttention(4, 2)
            self.out.weight = self.table.weight

    own = {"middle.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0"}
    attention = {"attention.in_proj_weight", "attention.out_proj.weight"}
    assert set(prunable(Tied())) == own | attention
    assert set(prunable(Tied(), embeddings=True)) == own | attention | {"table.weight"}
    assert set(prunable(Tied(), ["att*"])) == own
    assert set(prunable(Tied(), ["out"], embeddings=True)) == own | attention
    with pytest.raises(PathError, match="did you mean middle"):
        prunable(Tied(), ["midle"])
    with pytest.raises(RecipeError, match="no such layers"):
        Magnitude().apply(nn.Sequential(nn.BatchNorm1d(3)), NONE)
    with pytest.raises(RecipeError, match=r"Magnitude.ratio: .*less than 1.*\(got 1.5\)"):
        Magnitude(ratio=1.5)


def test_a_layer_without_weights_is_reported():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        module[0].weight.mul_(1e-6)
    assert [change.note for change in Magnitude(ratio=0.5).apply(module, NONE).changes] == [
        "no weight is left; the layer gives its bias",
        "",
    ]


@pytest.mark.parametrize("schedule", ["cubic", "linear", "one_shot"])
def test_the_share_of_zeros_follows_the_closed_form(schedule):
    module, steps, begin, until, every = net(), 40, 0.2, 0.7, 3
    callback = Magnitude(ratio=0.8, schedule=schedule, begin=begin, every=every).callback(module, NONE, until)
    total = sum(each.numel() for each in prunable(module).values())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    wanted = 0.0
    for clock in clocks(steps):
        with torch.no_grad():
            for each in module.parameters():
                each.add_(torch.randn_like(each) * 0.01)
            logged = callback.after_step(clock, optimizer)
        progress = (clock.step + 1) / steps
        time = min(1.0, (progress - begin) / (until - begin))
        due = clock.step % every == 0 or time > 1 - 1e-9 or schedule == "one_shot"
        if time > -1e-9 and due:
            wanted = {"cubic": 0.8 - 0.8 * (1 - time) ** 3, "linear": 0.8 * time, "one_shot": 0.8}[schedule]
        assert zeros(module) == pytest.approx(round(max(0.0, wanted) * total), abs=1)
        assert logged["sparsity"].item() == pytest.approx(zeros(module) / total, abs=1e-6)
        assert callback.ready == (wanted >= 0.8 - 1e-12)
    assert callback.ready
    assert sum(change.after for change in Magnitude(ratio=0.8).changes(module)) == total - round(0.8 * total)


def test_masks_are_complete_when_until_is_the_end_of_the_budget():
    module = net()
    callback = Magnitude(ratio=0.5).callback(module, NONE, 1.0)
    with torch.no_grad():
        for clock in clocks(7):
            assert not callback.ready
            callback.after_step(clock, torch.optim.SGD(module.parameters()))
    assert callback.ready
    with pytest.raises(RecipeError, match=r"begin is 0.6 .* below 0.6"):
        Magnitude(begin=0.6).callback(module, NONE, 0.6)


@pytest.mark.parametrize("scheme", [Magnitude(ratio=0.5), Movement(ratio=0.5), NM(schedule="gradual")])
def test_a_budget_that_ends_early_completes_the_masks(scheme):
    module = net()
    callback = scheme.callback(module, NONE, 1.0)
    with torch.no_grad():
        callback.after_step(Clock(0, 0, 0.0), torch.optim.SGD(module.parameters()))
        assert not callback.ready
        assert callback.finish()
        after = zeros(module)
        assert not callback.finish()
    assert callback.ready
    assert after == zeros(module) == sum(each.before - each.after for each in scheme.changes(module)) > 0


def test_stages_make_up_the_whole():
    assert [Magnitude(ratio=0.8).stage(k, 4).ratio for k in (1, 2, 4)] == pytest.approx([0.4625, 0.7, 0.8])
    assert Magnitude(ratio=0.8, schedule="linear").stage(1, 4).ratio == pytest.approx(0.2)
    once = Magnitude(ratio=0.75, schedule="one_shot")
    assert [once.stage(k, 2).ratio for k in (1, 2)] == pytest.approx([0.5, 0.75])
    first = Magnitude(ratio=0.8).stage(1, 2).apply(net(), NONE).module
    second = Magnitude(ratio=0.8).stage(2, 2).apply(first, NONE).module
    assert torch.equal(first[0].weight == 0, (first[0].weight == 0) & (second[0].weight == 0))
    assert [NM(n=1, m=8).stage(k, 3).n for k in (1, 2, 3)] == [5, 3, 1]


def test_movement_is_that_of_training_by_hand():
    """A linear model in float64: scores, values kept aside and masks as in a loop over NumPy arrays."""
    drawn = np.random.default_rng(0)
    x, y = drawn.normal(size=(20, 6)), drawn.normal(size=(20, 2))
    module = nn.Linear(6, 2, bias=False).double()
    dense = module.weight.detach().numpy().copy()
    movement, mask, steps, lr = np.zeros_like(dense), np.ones_like(dense, dtype=bool), 12, 0.1
    callback = Movement(ratio=0.5, schedule="linear").callback(module, NONE, 0.75)
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    seen = []
    for clock in clocks(steps):
        optimizer.zero_grad()
        ((module(torch.from_numpy(x)) - torch.from_numpy(y)) ** 2).mean().backward()
        optimizer.step()
        with torch.no_grad():
            callback.after_step(clock, optimizer)
        gradient = 2 * (x @ (dense * mask).T - y).T @ x / y.size
        time = (clock.step + 1) / steps / 0.75
        movement -= dense * gradient
        dense -= np.where(mask, lr * gradient, 0)
        if clock.step == 0:
            time = 0.0
        if time < 1 + 1.5 / steps:
            lowest = np.argsort(movement, axis=None, kind="stable")[: round(0.5 * min(time, 1.0) * dense.size)]
            if len(lowest) or clock.step:
                mask = np.ones_like(mask)
                mask.flat[lowest] = False
                seen.append(mask.copy())
        if time >= 1 - 1e-9 and not callback.ready:
            pytest.fail("masks are not complete")
        if time >= 1 - 1e-9:
            break
        np.testing.assert_allclose(module.weight.detach().numpy(), dense * mask, rtol=1e-9, atol=1e-12)
    assert callback.ready
    np.testing.assert_array_equal(module.weight.detach().numpy() != 0, mask)
    assert int(mask.sum()) == 6


def test_a_weight_that_was_left_out_comes_back_with_its_value():
    module = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 2.0]]))
    callback = Movement(ratio=0.5, schedule="one_shot", begin=0.0).callback(module, NONE, 1.0)
    callback.rule = lambda scores, strength: smallest_out(scores, 0.5, "global")
    callback.pace = type(callback.pace)(0.0, 1.0, 1, lambda time: 0.5)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    for step, gradient, kept in ((0, [1.0, -1.0], [0.0, 2.0]), (1, [-9.0, 9.0], [1.0, 0.0])):
        module.weight.grad = torch.tensor([gradient])
        with torch.no_grad():
            callback.after_step(Clock(step, 0, step / 10), optimizer)
        assert module.weight.tolist() == [kept]


def test_movement_at_once_takes_the_first_order_change_of_the_loss():
    torch.manual_seed(1)
    module, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double(), torch.randn(3, 8, 4).double()
    evidence = Evidence((), losses=lambda each: ((each(batch) ** 2).mean() for batch in x))
    made = Movement(ratio=0.4, scope="layer").apply(module, evidence)
    for name, weight in prunable(module).items():
        change = np.zeros(weight.shape)
        for place in np.ndindex(*weight.shape):
            kept = weight.data[place].item()
            for batch in x:
                values = []
                for shift in (1e-5, -1e-5):
                    weight.data[place] = kept + shift
                    values.append((module(batch) ** 2).mean().item())
                weight.data[place] = kept
                change[place] -= kept * (values[0] - values[1]) / 2e-5
        out = np.argsort(change, axis=None)[: round(0.4 * change.size)]
        expected = np.ones(change.size, dtype=bool)
        expected[out] = False
        pruned = made.module.get_parameter(name).detach().numpy()
        np.testing.assert_array_equal(pruned.ravel() != 0, expected)
    assert all(each.grad is None for each in module.parameters())
    with pytest.raises(RecipeError, match="needs losses"):
        Movement().apply(module, NONE)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 8)]), st.integers(0, 99))
def test_n_of_m_against_a_loop(outs, groups, pattern, seed):
    n, m = pattern
    scores = np.random.default_rng(seed).integers(0, 4, size=(outs, groups * m, 2)).astype(float)
    mask = largest_of(torch.from_numpy(scores), n, m).numpy()
    for out in range(outs):
        for place in range(2):
            for group in range(groups):
                each = slice(group * m, group * m + m)
                order = sorted(range(m), key=lambda i: -scores[out, each, place][i])
                assert set(np.flatnonzero(mask[out, each, place])) == set(order[:n])


def test_two_of_four_is_found_on_the_weights_and_the_rest_is_reported():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 6, 3), nn.ConvTranspose2d(6, 4, 2)
    )
    made = NM().apply(module, NONE)
    groups = made.module[2].weight.detach().movedim(1, -1).reshape(-1, 4)
    assert ((groups != 0).sum(1) == 2).all()
    notes = {change.path: change.note for change in made.changes}
    assert notes["0"] == "stays: its input, 3, is no multiple of 4"
    assert "1, is no multiple" in notes["1"]
    assert "transposed" in notes["3"]
    assert notes["2"] == ""
    assert torch.equal(made.module[0].weight, module[0].weight)
    with pytest.raises(RecipeError, match="no layer fits 2:4"):
        NM().apply(module[:2], NONE)
    with pytest.raises(RecipeError, match="n must be below m"):
        NM(n=4)


def test_n_falls_one_by_one_from_m():
    module = nn.Linear(16, 4)
    callback = NM(n=1, m=4, schedule="gradual").callback(module, NONE, 0.9)
    seen = []
    with torch.no_grad():
        for clock in clocks(20):
            callback.after_step(clock, torch.optim.SGD(module.parameters()))
            seen.append(int((module.weight.view(-1, 4) != 0).sum(1).max()))
            progress = (clock.step + 1) / 20 if clock.step else 0
            assert seen[-1] == 4 - math.floor(min(1, progress / 0.9) * 3 + 1e-9)
    assert callback.ready
    assert (module.weight.view(-1, 4) != 0).sum(1).eq(1).all()


@pytest.mark.parametrize("scheme", [Magnitude(ratio=0.6), NM()])
def test_zeros_are_held_while_a_network_recovers(scheme):
    made = scheme.apply(net(), NONE).module
    before = {name: each == 0 for name, each in prunable(made).items()}
    callback = scheme.hold(made)
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.1)
    for clock in clocks(4):
        optimizer.zero_grad()
        made(torch.randn(6, 8, 3, 3)).square().sum().backward()
        optimizer.step()
        with torch.no_grad():
            callback.after_step(clock, optimizer)
    assert callback.ready
    for name, each in prunable(made).items():
        if scheme.use == "magnitude" or name != "5.weight":
            assert torch.equal(each == 0, before[name])


@pytest.mark.parametrize("scheme", [Magnitude(ratio=0.8, every=2), Movement(ratio=0.8), NM(schedule="gradual")])
def test_a_companion_goes_on_from_its_state(scheme):
    def train(module, callback, optimizer, steps):
        for clock in steps:
            torch.manual_seed(clock.step)
            optimizer.zero_grad()
            module(torch.randn(6, 8, 3, 3)).square().sum().backward()
            optimizer.step()
            with torch.no_grad():
                callback.after_step(clock, optimizer)

    def begun():
        module = net()
        return module, scheme.callback(module, NONE, 0.8), torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)

    whole, first, again = begun(), begun(), begun()
    train(*whole, clocks(10))
    train(*first, clocks(10)[:5])
    for old, new in zip(first, again):
        new.load_state_dict(old.state_dict())
    train(*again, clocks(10)[5:])
    assert all(torch.equal(a, b) for a, b in zip(whole[0].parameters(), again[0].parameters()))
    assert zeros(again[0]) > 0


def test_movement_at_once_leaves_statistics_and_modes_alone():
    module = net().train()
    before = {name: each.clone() for name, each in module.state_dict().items()}
    x = torch.randn(16, 8, 3, 3)
    evidence = Evidence((x,), losses=lambda each: iter([each(x).square().mean()]))
    Movement(ratio=0.5).apply(module, evidence)
    assert all(torch.equal(each, before[name]) for name, each in module.state_dict().items())
    assert all(each.training for each in module.modules())
