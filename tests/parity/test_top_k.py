"""Losses of a teacher's largest probabilities against loops in NumPy float64, written from the definitions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import decoct.functional as F
from decoct.errors import RecipeError
from decoct.outputs import TopK


def draw(seed, *shape, dtype=torch.float64):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def double(top):
    """Its numbers in float64, so that float32 storage does not cover an error."""
    return top.each(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def keep(logits, k, tail="bucket", temperatures=(1.0,), draws=0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    top = double(TopK.of(logits, k, tail=tail, temperatures=temperatures, draws=draws, generator=generator))
    log_p = logits.double().log_softmax(-1)
    others = log_p.scatter(-1, top.ids, -torch.inf)
    rest = torch.stack([(others / t).logsumexp(-1) for t in temperatures], -1)
    drawn = None if top.drawn is None else log_p.gather(-1, top.drawn)
    return replace(top, log_probs=log_p.gather(-1, top.ids), rest=rest, drawn_log_probs=drawn)


def softmax(row, temperature=1.0):
    parts = np.exp((row - row.max()) / temperature)
    return parts / parts.sum()


def kl(a, b):
    return sum(x * (np.log(x) - np.log(y)) for x, y in zip(a, b) if x > 0)


def expected(student, teacher, ids, tail, temperature):
    """KL of one item, and the cross-entropy, from the teacher's whole distribution."""
    q, p = softmax(student, temperature), softmax(teacher, temperature)
    kept = sorted(ids)
    others = [c for c in range(len(p)) if c not in kept]
    if tail == "uniform":
        p = p.copy()
        p[others] = p[others].sum() / max(len(others), 1)
    else:
        p, q = (np.array([*(x[c] for c in kept), sum(x[c] for c in others)]) for x in (p, q))
    cross = -sum(x * np.log(y) for x, y in zip(p, q) if x > 0)
    return kl(p, q), cross


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    items=st.sampled_from([1, 4]),
    classes=st.sampled_from([2, 5, 9]),
    k=st.integers(1, 9),
    tail=st.sampled_from(["bucket", "uniform"]),
    temperature=st.sampled_from([1.0, 2.0, 4.0]),
)
def test_value_is_that_of_the_definition(seed, items, classes, k, tail, temperature):
    s, t = draw(seed, items, classes), draw(seed + 1, items, classes)
    top = keep(t, min(k, classes), tail, (1.0, 2.0, 4.0))
    rows = [
        expected(a.numpy(), b.numpy(), ids.tolist(), tail, temperature) for a, b, ids in zip(s, t, top.ids, strict=True)
    ]
    value, cross = np.mean(rows, 0)
    assert F.top_k_kl_loss(s, top, temperature=temperature).item() == pytest.approx(value, abs=1e-9)
    assert F.top_k_cross_entropy(s, top, temperature=temperature).item() == pytest.approx(cross, abs=1e-9)
    if min(k, classes) == classes:
        drawn = replace(top, tail="sample", temperatures=(4.0,), rest=top.rest[:, :1])
        assert F.top_k_kl_loss(s, drawn).item() == pytest.approx(F.forward_kl_loss(s, t).item(), abs=1e-9)
        whole = F.forward_kl_loss(s, t, temperature=temperature)
        assert F.top_k_kl_loss(s, top, temperature=temperature).item() == pytest.approx(whole.item(), abs=1e-9)


@pytest.mark.parametrize("tail", ["bucket", "uniform", "sample"])
@pytest.mark.parametrize("loss", [F.top_k_kl_loss, F.top_k_cross_entropy])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_gradient_by_finite_differences(tail, loss, k):
    s, top = draw(3, 3, 6).requires_grad_(), keep(draw(4, 3, 6), k, tail, draws=4)
    assert torch.autograd.gradcheck(lambda x: loss(x, top), s)


def test_draws_give_value_and_gradient_that_are_right_on_average():
    s, t = draw(5, 1, 8), draw(6, 1, 8)
    exact = s.clone().requires_grad_()
    whole = F.forward_kl_loss(exact, t)
    whole.backward()
    many, unknown, gradients = [], [], []
    p = t.softmax(-1)
    for seed in range(3000):
        top = keep(t, 2, "sample", draws=2, seed=seed)
        x = s.clone().requires_grad_()
        loss = F.top_k_kl_loss(x, top)
        loss.backward()
        many.append(loss.item())
        gradients.append(x.grad[0].numpy())
        unknown.append(F.top_k_kl_loss(s, replace(top, drawn_log_probs=None)).item())
    deviation = np.std(many) / np.sqrt(len(many))
    assert abs(np.mean(many) - whole.item()) < 4 * deviation
    spread = np.std(gradients, 0) / np.sqrt(len(gradients))
    assert (np.abs(np.mean(gradients, 0) - exact.grad[0].numpy()) < 4.5 * spread + 1e-12).all()
    tail = p[0].scatter(0, top.ids[0], 0.0)
    inside = tail / tail.sum()
    entropy = -torch.xlogy(inside, inside).sum()
    excess = np.mean(unknown) - whole.item()
    assert abs(excess - (tail.sum() * entropy).item()) < 4 * np.std(unknown) / np.sqrt(len(unknown))


@pytest.mark.parametrize("tail", ["bucket", "uniform", "sample"])
def test_zero_where_the_student_says_what_was_kept(tail):
    t = draw(7, 5, 9)
    top = keep(t, 3, tail, (1.0, 3.0), draws=4)
    same = top.spread() if tail == "uniform" else t
    temperatures = (1.0,) if tail == "sample" else (1.0, 3.0) if tail == "bucket" else (1.0,)
    for temperature in temperatures:
        x = same.clone().requires_grad_()
        loss = F.top_k_kl_loss(x, top, temperature=temperature)
        loss.backward()
        assert abs(loss.item()) < 1e-12
        if tail != "sample":
            assert x.grad.abs().max().item() < 1e-12


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), kept=st.lists(st.booleans(), min_size=6, max_size=6))
@pytest.mark.parametrize("tail", ["bucket", "uniform", "sample"])
def test_a_mask_is_the_same_as_leaving_the_items_out(tail, seed, kept):
    s, top = draw(seed, 6, 5), keep(draw(seed + 1, 6, 5), 2, tail, draws=3)
    mask = torch.tensor(kept)
    x = s.clone()
    x[~mask] = float("nan")
    spoilt = top.each(lambda each: each.masked_fill(~mask.unsqueeze(-1), -100))
    shaped = spoilt.each(lambda each: each.reshape(2, 3, -1))
    x = x.reshape(2, 3, 5).requires_grad_()
    got = F.top_k_kl_loss(x, shaped, mask=mask.reshape(2, 3))
    wanted = F.top_k_kl_loss(s[mask], top.each(lambda each: each[mask])) if mask.any() else torch.tensor(0.0)
    assert got.item() == pytest.approx(wanted.item(), abs=1e-12)
    got.backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("tail", ["bucket", "uniform", "sample"])
def test_padding_at_minus_infinity_adds_nothing(tail):
    s, t = draw(8, 4, 6), draw(9, 4, 6)
    pad = torch.full((4, 3), -torch.inf, dtype=torch.float64)
    plain, padded = s.clone().requires_grad_(), torch.cat([s, pad], -1).requires_grad_()
    top = keep(t, 3, tail, draws=4)
    one = F.top_k_kl_loss(plain, top)
    two = F.top_k_kl_loss(padded, replace(top, classes=9))
    assert two.item() == pytest.approx(one.item(), abs=1e-12)
    one.backward()
    two.backward()
    torch.testing.assert_close(padded.grad[:, :6], plain.grad)
    assert (padded.grad[:, 6:] == 0).all()
    full = keep(torch.cat([t, pad], -1), 8, "bucket")
    assert (full.rest == -torch.inf).all()
    assert F.top_k_kl_loss(padded, full).item() == pytest.approx(F.forward_kl_loss(s, t).item(), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tail", ["bucket", "uniform", "sample"])
def test_finite_at_large_logits_and_in_half_precision(dtype, tail):
    for scale in (1.0, 1e4):
        s, t = (scale * draw(seed, 4, 7).sign() for seed in (10, 11))
        x = s.to(dtype).requires_grad_()
        loss = F.top_k_kl_loss(x, TopK.of(t.float(), 2, tail=tail, draws=3))
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(x.grad).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(0.1, 5),
    temperature=st.floats(1, 30),
    nodes=st.sampled_from([(1.0,), (1.0, 2.0), (1.0, 2.0, 4.0), (4.0, 1.0, 2.0), (1.0, 2.0, 4.0, 8.0)]),
)
def test_between_temperatures_the_tail_is_within_its_bounds(seed, scale, temperature, nodes):
    t = scale * draw(seed, 3, 40)
    top = keep(t, 5, "bucket", nodes)
    log_p = t.log_softmax(-1).scatter(-1, top.ids, -torch.inf)
    exact = (log_p / temperature).logsumexp(-1)
    got = top.log_rest(temperature)
    grid = sorted([0.0, *(1 / each for each in nodes)])
    s = 1 / temperature
    i = max(k for k in range(len(grid) - 1) if grid[k] <= s + 1e-12)
    inside = log_p.masked_fill(log_p == -torch.inf, torch.nan)
    width = grid[i + 1] - grid[i]
    steepest = ((inside.nan_to_num(-1e9).amax(-1) - inside.nan_to_num(1e9).amin(-1)) / 2).square()
    bound = width * width / 8 * steepest
    assert (got - exact <= bound + 1e-9).all()
    assert (exact - got <= 4 * bound + 1e-9).all()
    for node in nodes:
        torch.testing.assert_close(top.log_rest(node), (log_p / node).logsumexp(-1))


def test_a_few_temperatures_are_enough_for_those_between():
    t = draw(12, 64, 1000) * 1.5
    log_p = t.log_softmax(-1)
    found = {}
    for nodes in ((1.0,), (1.0, 2.0), (1.0, 2.0, 4.0, 8.0)):
        top = keep(t, 16, "bucket", nodes)
        others = log_p.scatter(-1, top.ids, -torch.inf)
        gaps = [(top.log_rest(x) - (others / x).logsumexp(-1)).abs().max().item() for x in (1.5, 3.0, 6.0, 12.0)]
        found[nodes] = max(gaps)
    assert found[(1.0, 2.0, 4.0, 8.0)] < 0.05 < found[(1.0, 2.0)] < found[(1.0,)]


def test_what_cannot_be_is_refused():
    s, top = draw(13, 4, 6), keep(draw(14, 4, 6), 2, "bucket", (2.0, 4.0))
    with pytest.raises(RecipeError, match="temperatures 2, 4; allowed: 2 or more"):
        F.top_k_kl_loss(s, top, temperature=1.0)
    with pytest.raises(RecipeError, match="random draws at temperature 1; allowed: 1"):
        F.top_k_kl_loss(s, keep(s, 2, "sample", draws=2), temperature=2.0)
    with pytest.raises(RecipeError, match="targets for 6 classes"):
        F.top_k_kl_loss(s[:, :5], top)
    with pytest.raises(RecipeError, match="items must be the same"):
        F.top_k_kl_loss(s[:3], top)
    with pytest.raises(RecipeError, match="kept classes from 0 to 6"):
        F.top_k_kl_loss(s, replace(keep(s, 2), ids=torch.tensor([[0, 6]] * 4)))
    with pytest.raises(RecipeError, match="top_k is 7"):
        TopK.of(s, 7)
