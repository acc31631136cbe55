"""Divergences for sequences against loops in NumPy float64, written from the definitions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import decoct.functional as F
from decoct.errors import RecipeError


def softmax(row, temperature=1.0):
    top = max(row)
    parts = [math.exp((x - top) / temperature) for x in row]
    return [x / sum(parts) for x in parts]


def kl(a, b):
    return sum(x * (math.log(x) - math.log(y)) for x, y in zip(a, b) if x > 0)


def mix(w, a, b):
    return [w * x + (1 - w) * y for x, y in zip(a, b)]


def forward(p, q):
    return kl(p, q)


def reverse(p, q):
    return kl(q, p)


def skew(p, q, alpha=0.1):
    return kl(p, mix(alpha, p, q))


def skew_reverse(p, q, alpha=0.1):
    return kl(q, mix(alpha, q, p))


def variation(p, q):
    return sum(abs(a - b) for a, b in zip(p, q)) / 2


def tail_share(p, q, alpha):
    tail = whole = cumulative = 0.0
    for c in sorted(range(len(p)), key=lambda c: p[c]):
        cumulative += p[c]
        whole += abs(p[c] - q[c])
        tail += abs(p[c] - q[c]) if cumulative <= alpha else 0.0
    return tail / whole if whole > 0 else 0.5


def adaptive(p, q, alpha=0.5, share=None):
    share = tail_share(p, q, alpha) if share is None else share
    return (1 - share) * kl(p, q) + share * kl(q, p)


def jsd(p, q, beta=0.5, top_k=None, tail=True):
    if top_k is not None and top_k < len(p):
        best = [sorted(range(len(p)), key=lambda c: -row[c])[:top_k] for row in (p, q)]
        support = sorted({0.0: set(best[0]), 1.0: set(best[1])}.get(float(beta), set(best[0]) | set(best[1])))
        rest = [sum(row[c] for c in range(len(p)) if c not in support) for row in (p, q)]
        p, q = ([row[c] for c in support] for row in (p, q))
        if not tail:
            p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        elif rest[0] > 0:
            p, q = [*p, rest[0]], [*q, rest[1]]
    if beta == 0:
        return kl(p, q)
    if beta == 1:
        return kl(q, p)
    m = mix(beta, p, q)
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


LOSSES = {
    "forward_kl": (F.forward_kl_loss, forward, [{}]),
    "reverse_kl": (F.reverse_kl_loss, reverse, [{}]),
    "skew_kl": (F.skew_kl_loss, skew, [{}, {"alpha": 0.6}, {"alpha": 0.0}, {"alpha": 1.0}]),
    "skew_reverse_kl": (F.skew_reverse_kl_loss, skew_reverse, [{}, {"alpha": 0.6}, {"alpha": 0.0}]),
    "adaptive_kl": (F.adaptive_kl_loss, adaptive, [{}, {"alpha": 0.2}]),
    "total_variation": (F.total_variation_loss, variation, [{}]),
    "jsd": (
        F.jsd_loss,
        jsd,
        [
            *({"beta": b} for b in (0.0, 0.1, 0.5, 0.9, 1.0)),
            *({"beta": b, "top_k": k, "tail": t} for b in (0.0, 0.3, 1.0) for k in (1, 2, 4) for t in (True, False)),
        ],
    ),
}


def draw(seed, tokens, classes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return tuple(2 * torch.randn(tokens, classes, generator=generator, dtype=dtype) for _ in range(2))


def expected(name, s, t, temperature=1.0, **options):
    rows = [
        LOSSES[name][1](softmax(b, temperature), softmax(a, temperature), **options)
        for a, b in zip(s.tolist(), t.tolist())
    ]
    return sum(rows) / len(rows) if rows else 0.0


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 1000), tokens=st.sampled_from([1, 3]), classes=st.sampled_from([1, 2, 5, 9]))
def test_value_is_that_of_the_definition(name, seed, tokens, classes):
    s, t = draw(seed, tokens, classes)
    for options in LOSSES[name][2]:
        got = LOSSES[name][0](s, t, temperature=1.7, **options)
        assert got.item() == pytest.approx(expected(name, s, t, 1.7, **options), abs=1e-9)


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), kept=st.lists(st.booleans(), min_size=6, max_size=6))
def test_a_mask_is_the_same_as_leaving_the_tokens_out(name, seed, kept):
    s, t = draw(seed, 6, 5)
    mask = torch.tensor(kept)
    for options in LOSSES[name][2]:
        a, b = s.clone(), t.clone()
        a[~mask], b[~mask] = float("nan"), float("inf")
        a = a.reshape(2, 3, 5).requires_grad_()
        got = LOSSES[name][0](a, b.reshape(2, 3, 5), mask=mask.reshape(2, 3), **options)
        assert got.item() == pytest.approx(expected(name, s[mask], t[mask], **options), abs=1e-9)
        got.backward()
        assert torch.isfinite(a.grad).all()


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "adaptive_kl"])
def test_gradient_by_finite_differences(name):
    s, t = draw(3, 3, 5)
    s.requires_grad_()
    for options in LOSSES[name][2]:
        assert torch.autograd.gradcheck(lambda x, o=options: LOSSES[name][0](x, t, temperature=1.3, **o), s)


def test_adaptive_kl_takes_no_gradient_through_its_weights():
    s, t = draw(5, 1, 4)
    p = softmax(t[0].tolist())
    share = tail_share(p, softmax(s[0].tolist()), 0.5)
    s.requires_grad_()
    F.adaptive_kl_loss(s, t).backward()
    for c in range(4):
        values = []
        for step in (1e-6, -1e-6):
            moved = s[0].tolist()
            moved[c] += step
            values.append(adaptive(p, softmax(moved), share=share))
        assert s.grad[0, c].item() == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-7)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["student", "teacher", "both", "equal", "constant"])
def test_finite_at_large_logits(name, dtype, case):
    s, t = draw(7, 4, 5, dtype)
    scale = {"student": (1e4, 1), "teacher": (1, 1e4), "both": (1e4, 1e4), "equal": (1e4, 1e4), "constant": (0, 0)}[
        case
    ]
    s, t = (x.sign() * f + (1e4 if case == "constant" else 0) for x, f in zip((s, t), scale))
    t = s.clone() if case == "equal" else t
    for options in LOSSES[name][2]:
        x = s.clone().requires_grad_()
        loss = LOSSES[name][0](x, t, **options)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(x.grad).all()
        if case in ("equal", "constant"):
            assert loss.item() == 0
            assert x.grad.abs().max().item() < 1e-6


@pytest.mark.parametrize("name", LOSSES)
def test_zero_at_equality_and_padding_at_minus_infinity_adds_nothing(name):
    s, t = draw(13, 4, 6)
    pad = torch.full((4, 2), -torch.inf, dtype=torch.float64)
    for options in LOSSES[name][2]:
        x = s.clone().requires_grad_()
        LOSSES[name][0](x, s, **options).backward()
        assert LOSSES[name][0](s, s, **options).item() == 0
        assert x.grad.abs().max().item() < 1e-12
        plain, padded = s.clone().requires_grad_(), torch.cat([s, pad], 1).requires_grad_()
        one = LOSSES[name][0](plain, t, **options)
        two = LOSSES[name][0](padded, torch.cat([t, pad], 1), **options)
        assert two.item() == pytest.approx(one.item(), abs=1e-12)
        one.backward()
        two.backward()
        torch.testing.assert_close(padded.grad[:, :6], plain.grad)
        assert (padded.grad[:, 6:] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000), tokens=st.sampled_from([1, 5, 8]), chunk=st.sampled_from([1, 3, 100]))
def test_from_hidden_states_as_from_the_whole_logits(name, seed, tokens, chunk):
    generator = torch.Generator().manual_seed(seed)

    def make(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = [make(tokens, 3), make(7, 3)]
    teacher = [make(tokens, 4).requires_grad_(), make(7, 4).requires_grad_()]
    mask = torch.rand(tokens, generator=generator) > 0.4
    for options in LOSSES[name][2][:3]:
        one, two = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
        whole = LOSSES[name][0](one[0] @ one[1].T, teacher[0] @ teacher[1].T, temperature=1.4, mask=mask, **options)
        got = F.linear_kd_loss(*two, *teacher, divergence=name, temperature=1.4, mask=mask, chunk=chunk, **options)
        assert got.item() == pytest.approx(whole.item(), abs=1e-12)
        (3 * whole).backward()
        (3 * got).backward()
        for a, b in zip(one, two):
            torch.testing.assert_close(a.grad, b.grad, atol=1e-12, rtol=1e-9)
        assert teacher[0].grad is None
        with torch.no_grad():
            value = F.linear_kd_loss(*two, *teacher, divergence=name, temperature=1.4, mask=mask, **options)
        assert value.item() == pytest.approx(whole.item(), abs=1e-12)


def test_linear_kd_refuses_what_it_cannot_do():
    h, w = torch.randn(4, 3), torch.randn(7, 3)
    with pytest.raises(RecipeError, match="did you mean forward_kl"):
        F.linear_kd_loss(h, w, h, w, divergence="forward_k")
    with pytest.raises(RecipeError, match="alpha is no option of forward_kl"):
        F.linear_kd_loss(h, w, h, w, alpha=0.1)
    with pytest.raises(RecipeError, match=r"\[7, 3\] and teacher weight \[6, 3\]"):
        F.linear_kd_loss(h, w, h, w[:6])
    with pytest.raises(RecipeError, match=r"\[4, 3\] and teacher hidden \[3, 3\]"):
        F.linear_kd_loss(h, w, h[:3], w)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    lengths=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_uld(seed, lengths, sizes):
    generator = torch.Generator().manual_seed(seed)
    s, t = (torch.randn(3, n, v, generator=generator, dtype=torch.float64) for n, v in zip(lengths, sizes))
    masks = [torch.rand(3, n, generator=generator) > 0.3 for n in lengths]
    total = 0.0
    for b in range(3):
        own = [s[b, i].tolist() for i in range(lengths[0]) if masks[0][b, i]]
        theirs = [t[b, i].tolist() for i in range(lengths[1]) if masks[1][b, i]]
        gaps = []
        for x, z in zip(own, theirs):
            q, p = (sorted(softmax(row, 1.5), reverse=True) for row in (x, z))
            size = max(len(p), len(q))
            q, p = (row + [0.0] * (size - len(row)) for row in (q, p))
            gaps.append(sum(abs(a - c) for a, c in zip(p, q)))
        total += sum(gaps) / len(gaps) if gaps else 0.0
    kept = {"student_mask": masks[0], "teacher_mask": masks[1]}
    assert F.uld_loss(s, t, temperature=1.5, **kept).item() == pytest.approx(total / 3, abs=1e-9)
    assert torch.autograd.gradcheck(lambda x: F.uld_loss(x, t, **kept), s.requires_grad_())
    same = {"student_mask": masks[0], "teacher_mask": masks[0]}
    assert F.uld_loss(s, s.detach(), **same).item() == 0
