"""Feature and relation losses against loops in NumPy float64, written from the definitions."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import decoct.functional as F
from decoct.errors import RecipeError
from decoct.objectives import _maps


def unit(v):
    v = np.asarray(v, dtype=np.float64).ravel()
    return v / max(math.sqrt(sum(x * x for x in v)), 1e-12)


def pool(x, size):
    """Adaptive average pooling of [B, C, H, W] to (h, w), window by window."""
    B, C, H, W = x.shape
    h, w = size
    out = np.zeros((B, C, h, w))
    for i in range(h):
        for j in range(w):
            rows = slice(i * H // h, -(-(i + 1) * H // h))
            columns = slice(j * W // w, -(-(j + 1) * W // w))
            out[:, :, i, j] = x[:, :, rows, columns].mean((2, 3))
    return out


def pooled(a, b):
    if a.ndim == 4 and b.ndim == 4 and a.shape[2] != b.shape[2]:
        return (pool(a, b.shape[2:]), b) if a.shape[2] > b.shape[2] else (a, pool(b, a.shape[2:]))
    return a, b


def channels(x):
    """[B][C] -> vector of positions."""
    return [[c.ravel() for c in (b if x.ndim == 4 else b.T)] for b in x]


def hint(s, t):
    return np.mean([(a - b) ** 2 for a, b in zip(s.ravel(), t.ravel())])


def attention_transfer(s, t, p=2):
    s, t = (channels(x) for x in pooled(s, t))
    total = []
    for own, theirs in zip(s, t):
        a = unit(sum(c**p for c in own) / len(own))
        b = unit(sum(c**p for c in theirs) / len(theirs))
        total += [(x - y) ** 2 for x, y in zip(a, b)]
    return np.mean(total)


def nst(s, t):
    s, t = (channels(x) for x in pooled(s, t))

    def kernel(a, b):
        return np.mean([sum(x * y for x, y in zip(unit(c), unit(d))) ** 2 for i, j in zip(a, b) for c in i for d in j])

    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


def factor_transfer(s, t):
    return np.mean([abs(x - y) for a, b in zip(s, t) for x, y in zip(unit(a), unit(b))])


def activation_boundary(s, t, margin=1.0):
    total = 0.0
    for a, b in zip(s.ravel(), t.ravel()):
        total += (a + margin) ** 2 if a > -margin and b <= 0 else 0.0
        total += (a - margin) ** 2 if a <= margin and b > 0 else 0.0
    return total / s.size


def hierarchical_context(s, t):
    total, weights, weight = hint(s, t), 1.0, 1.0
    for size in (4, 2, 1):
        if size < s.shape[2]:
            weight /= 2
            total += weight * hint(pool(s, (size, size)), pool(t, (size, size)))
            weights += weight
    return total / weights


def softmax(row):
    e = np.exp(np.asarray(row) - max(row))
    return e / e.sum()


def kl(a, b):
    return sum(x * (math.log(x) - math.log(y)) for x, y in zip(a, b) if x > 0)


def channel_wise(s, t, temperature=4.0):
    s, t = channels(s), channels(t)
    rows = [kl(softmax(d / temperature), softmax(c / temperature)) for a, b in zip(s, t) for c, d in zip(a, b)]
    return temperature**2 * sum(rows) / (len(s) * len(s[0]))


def channel_correlation(s, t):
    total = 0.0
    for a, b in zip(channels(s), channels(t)):
        for c in range(len(a)):
            own, theirs = unit([a[c] @ d for d in a]), unit([b[c] @ d for d in b])
            total += sum((own - theirs) ** 2)
    return total / (len(channels(s)[0]) * len(s) ** 2)


def pearson_feature(s, t):
    def z(x):
        out = []
        for c in range(len(channels(x)[0])):
            v = np.concatenate([b[c] for b in channels(x)])
            std = v.std(ddof=1) if len(v) > 1 else 0.0
            out.append((v - v.mean()) / (std + 1e-6))
        return np.array(out)

    return 0.5 * np.mean((z(s) - z(t)) ** 2)


def patient(s, t):
    first = [x[:, 0] if x.ndim == 3 else x for x in (s, t)]
    return np.mean([sum((unit(a) - unit(b)) ** 2) for a, b in zip(*first)])


def hidden_cosine(s, t):
    rows = [x.reshape(-1, x.shape[-1]) for x in (s, t)]
    return np.mean([1 - unit(a) @ unit(b) for a, b in zip(*rows)])


def smooth_l1(x):
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def flat(x):
    return [v.ravel() for v in x]


def rkd_distance(s, t):
    def distances(x):
        d = [
            [0.0 if i == j else math.sqrt(max(sum((a - b) ** 2), 1e-12)) for j, b in enumerate(x)]
            for i, a in enumerate(x)
        ]
        positive = [v for row in d for v in row if v > 0]
        return np.array(d) / np.mean(positive) if positive else np.array(d)

    gap = distances(flat(s)) - distances(flat(t))
    return np.mean([smooth_l1(v) for v in gap.ravel()])


def rkd_angle(s, t):
    def angles(x):
        n = range(len(x))
        return [unit(x[j] - x[i]) @ unit(x[k] - x[i]) for i in n for j in n for k in n]

    return np.mean([smooth_l1(a - b) for a, b in zip(angles(flat(s)), angles(flat(t)))])


def similarity_preserving(s, t):
    def gram(x):
        return [unit([a @ b for b in x]) for a in x]

    return sum(sum((a - b) ** 2) for a, b in zip(gram(flat(s)), gram(flat(t)))) / len(s) ** 2


def correlation_congruence(s, t, gamma=0.4, order=2):
    def kernel(x):
        x = [unit(v) for v in x]
        k = range(order + 1)
        return np.array(
            [
                [sum(math.exp(-2 * gamma) * (2 * gamma) ** i / math.factorial(i) * (a @ b) ** i for i in k) for b in x]
                for a in x
            ]
        )

    return np.mean((kernel(flat(s)) - kernel(flat(t))) ** 2)


def pkt(s, t):
    def conditional(x):
        x = [v / (math.sqrt(v @ v) + 1e-7) for v in x]
        rows = [[(a @ b + 1) / 2 for b in x] for a in x]
        return [[v / sum(row) for v in row] for row in rows]

    own, theirs = conditional(flat(s)), conditional(flat(t))
    pairs = [(a, b) for x, y in zip(own, theirs) for a, b in zip(x, y)]
    return np.mean([b * math.log((b + 1e-7) / (a + 1e-7)) for a, b in pairs])


MAP, OTHER, SMALL, TOKENS, WIDE = (3, 4, 5, 6), (3, 2, 5, 6), (3, 4, 3, 3), (2, 5, 4), (2, 5, 7)
ONE = (1, 1, 1, 1)
SAME = [(MAP, MAP), (TOKENS, TOKENS), (ONE, ONE)]
LOSSES = {
    "hint": (F.hint_loss, hint, [*SAME, ((5,), (5,))]),
    "attention_transfer": (
        F.attention_transfer_loss,
        attention_transfer,
        [*SAME, (MAP, OTHER), (OTHER, SMALL), (SMALL, MAP), (TOKENS, WIDE)],
    ),
    "attention_transfer_3": (partial(F.attention_transfer_loss, p=3), partial(attention_transfer, p=3), [(MAP, SMALL)]),
    "nst": (F.nst_loss, nst, [*SAME, (MAP, OTHER), (OTHER, SMALL), ((2, 9, 2, 2), (2, 7, 3, 3)), (TOKENS, WIDE)]),
    "factor_transfer": (F.factor_transfer_loss, factor_transfer, SAME),
    "activation_boundary": (F.activation_boundary_loss, activation_boundary, SAME),
    "hierarchical_context": (
        F.hierarchical_context_loss,
        hierarchical_context,
        [(MAP, MAP), ((2, 1, 3, 5),) * 2, (ONE, ONE), ((1, 2, 9, 7),) * 2],
    ),
    "channel_wise": (F.channel_wise_loss, channel_wise, SAME),
    "channel_correlation": (F.channel_correlation_loss, channel_correlation, [*SAME, (MAP, SMALL)]),
    "pearson_feature": (F.pearson_feature_loss, pearson_feature, SAME),
    "hidden_mse": (F.hidden_mse_loss, hint, [(TOKENS, TOKENS)]),
    "hidden_cosine": (F.hidden_cosine_loss, hidden_cosine, [(TOKENS, TOKENS), ((1, 1, 1),) * 2]),
    "attention_mse": (F.attention_mse_loss, hint, [((2, 3, 4, 4),) * 2]),
    "patient": (F.patient_loss, patient, [(TOKENS, TOKENS), ((3, 5),) * 2]),
    "rkd_distance": (F.rkd_distance_loss, rkd_distance, [*SAME, (TOKENS, WIDE), ((4, 3), (4, 6))]),
    "rkd_angle": (F.rkd_angle_loss, rkd_angle, [*SAME, (TOKENS, WIDE), ((4, 3), (4, 6))]),
    "similarity_preserving": (F.similarity_preserving_loss, similarity_preserving, [*SAME, ((4, 3), (4, 6))]),
    "correlation_congruence": (F.correlation_congruence_loss, correlation_congruence, [*SAME, ((4, 3), (4, 6))]),
    "pkt": (F.pkt_loss, pkt, [*SAME, ((4, 3), (4, 6))]),
}


def draw(seed, *shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000))
def test_value_is_that_of_the_definition(name, seed):
    function, oracle, shapes = LOSSES[name]
    for pair in shapes:
        s, t = draw(seed, *pair)
        assert function(s, t).item() == pytest.approx(oracle(s.numpy(), t.numpy()), abs=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_by_finite_differences_and_none_into_the_teacher(name):
    function, _, shapes = LOSSES[name]
    for pair in shapes:
        s, t = draw(3, *pair)
        t.requires_grad_()
        assert torch.autograd.gradcheck(lambda x, t=t: function(x, t), s.requires_grad_())
        function(s, t).backward()
        assert t.grad is None


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "activation_boundary"])
def test_zero_with_gradient_zero_at_equality(name):
    for shape in {pair[0] for pair in LOSSES[name][2] if pair[0] == pair[1]}:
        s, _ = draw(5, shape, shape)
        x = s.clone().requires_grad_()
        loss = LOSSES[name][0](x, s)
        loss.backward()
        assert abs(loss.item()) < 1e-14
        assert x.grad.abs().max().item() < (1e-8 if name == "pkt" else 1e-12)  # pkt: up to its 1e-7


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("case", ["zeros", "constant", "equal rows", "large"])
def test_finite_where_something_vanishes(name, case):
    for pair in LOSSES[name][2]:
        s, t = draw(7, *pair, dtype=torch.float32)
        s = {"zeros": 0 * s, "constant": 0 * s + 3, "equal rows": s[:1].expand_as(s).clone(), "large": 1e4 * s}[case]
        s.requires_grad_()
        loss = LOSSES[name][0](s, t)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_cast_up_also_under_autocast(name, dtype):
    for pair in LOSSES[name][2][:1]:
        s, t = draw(9, *pair, dtype=torch.float32)
        s, t = s.to(dtype).requires_grad_(), t.to(dtype)
        exact = LOSSES[name][0](s.float(), t.float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = LOSSES[name][0](s, t)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact.item(), abs=1e-6)


@pytest.mark.parametrize("name", ["nst", "rkd_angle", "channel_correlation"])
def test_pieces_give_the_same_value_and_gradient(name, monkeypatch):
    s, t = draw(11, (5, 4, 3, 3), (5, 4, 3, 3))
    results = []
    for budget in (1 << 24, 40):
        monkeypatch.setattr(_maps, "BUDGET", budget)
        x = s.clone().requires_grad_()
        loss = LOSSES[name][0](x, t)
        loss.backward()
        results.append((loss.item(), x.grad))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-14)
    torch.testing.assert_close(results[0][1], results[1][1])


@pytest.mark.parametrize("name", ["hint", "channel_wise", "pkt", "attention_transfer", "channel_correlation"])
def test_unlike_shapes_name_both(name):
    s, t = draw(13, (3, 4, 5, 6), (2, 5, 5, 7))
    with pytest.raises(RecipeError, match=r"\[3, 4, 5, 6\] and teacher \[2, 5, 5, 7\]"):
        LOSSES[name][0](s, t)


def test_fsp():
    pairs = [draw(15, (2, 3, 4, 4), (2, 5, 2, 2)) for _ in range(1)] + [draw(16, (2, 3, 6, 6), (2, 5, 3, 3))]
    flows = []
    for bottom, top in pairs:
        low, high = pooled(bottom.numpy(), top.numpy())
        low, high = channels(low), channels(high)
        flows.append(np.array([[[a @ b / len(a) for b in y] for a in x] for x, y in zip(low, high)]))
    got = F.fsp_loss(tuple(pairs[0]), tuple(pairs[1]))
    assert got.item() == pytest.approx(np.mean((flows[0] - flows[1]) ** 2), abs=1e-12)
    leaves = [x.requires_grad_() for x in pairs[0]]
    assert torch.autograd.gradcheck(lambda a, b: F.fsp_loss((a, b), tuple(pairs[1])), leaves)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 5, 3)])
def test_ofd(shape):
    s, t = draw(17, shape, shape)
    weight, bias = draw(18, (3,), (3,))
    margin = F.ofd_margin(weight, bias)
    for g, b, m in zip(weight.tolist(), bias.tolist(), margin.tolist()):
        sigma = abs(g)
        below = 0.5 * math.erfc(b / sigma / math.sqrt(2))
        expected = -sigma * math.exp(-((b / sigma) ** 2) / 2) / math.sqrt(2 * math.pi) / below + b
        assert m == pytest.approx(expected if below > 0.001 else -3 * sigma, abs=1e-9)
    assert F.ofd_margin(torch.tensor([0.5]), torch.tensor([9.0])).item() == -1.5
    total = 0.0
    for index in np.ndindex(*shape):
        a, b = s[index].item(), t[index].item()
        m = margin[index[1] if len(shape) == 4 else index[2]].item()
        if a > m and b <= m:
            total += (a - m) ** 2
        elif (a > b and m < b <= 0) or b > 0:
            total += (a - b) ** 2
    assert F.ofd_loss(s, t, margin).item() == pytest.approx(total / 2, abs=1e-9)
    assert torch.autograd.gradcheck(lambda x: F.ofd_loss(x, t, margin), s.requires_grad_())


def test_vid():
    mean, teacher = draw(19, (2, 3, 4, 4), (2, 3, 4, 4))
    variance = (draw(20, (3, 1, 1))[0].abs() + 0.1).requires_grad_()
    v = variance.detach().expand(2, 3, 4, 4)
    terms = [
        0.5 * ((b - a) ** 2 / c + math.log(c)) for a, b, c in zip(*(x.flatten().tolist() for x in (mean, teacher, v)))
    ]
    assert F.vid_loss(mean, variance, teacher).item() == pytest.approx(np.mean(terms), abs=1e-9)
    assert torch.autograd.gradcheck(lambda m, v: F.vid_loss(m, v, teacher), (mean.requires_grad_(), variance))


def test_pearson_resizes_the_student_bilinearly():
    s, t = draw(21, (2, 3, 3, 3), (2, 3, 6, 6))
    big = np.zeros((2, 3, 6, 6))
    for i in range(6):
        for j in range(6):
            y, x = ((k + 0.5) * 0.5 - 0.5 for k in (i, j))
            y, x = max(y, 0.0), max(x, 0.0)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, 2), min(x0 + 1, 2)
            a = s[:, :, y0, x0] * (1 - (x - x0)) + s[:, :, y0, x1] * (x - x0)
            b = s[:, :, y1, x0] * (1 - (x - x0)) + s[:, :, y1, x1] * (x - x0)
            big[:, :, i, j] = a * (1 - (y - y0)) + b * (y - y0)
    assert F.pearson_feature_loss(s, t).item() == pytest.approx(pearson_feature(big, t.numpy()), abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), kept=st.lists(st.booleans(), min_size=6, max_size=6))
def test_masks_leave_positions_out(seed, kept):
    mask = torch.tensor(kept).reshape(2, 3)
    s, t = draw(seed, (2, 3, 4), (2, 3, 4))
    dirty_s, dirty_t = s.clone(), t.clone()
    dirty_s[~mask], dirty_t[~mask] = float("nan"), float("inf")
    for function, oracle in ((F.hidden_mse_loss, hint), (F.hidden_cosine_loss, hidden_cosine)):
        x = dirty_s.clone().requires_grad_()
        got = function(x, dirty_t, mask=mask)
        expected = oracle(s[mask].numpy(), t[mask].numpy()) if mask.any() else 0.0
        assert got.item() == pytest.approx(expected, abs=1e-9)
        got.backward()
        assert torch.isfinite(x.grad).all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), kept=st.lists(st.booleans(), min_size=6, max_size=6))
def test_attention_and_relations_by_pairs_of_kept_positions(seed, kept):
    mask = torch.tensor(kept).reshape(2, 3)
    s, t = draw(seed, (2, 2, 3, 3), (2, 2, 3, 3))
    x, y = draw(seed + 1, (2, 2, 3, 4), (2, 2, 3, 5))
    scores, rows = [], []
    for b in range(2):
        keep = [i for i in range(3) if mask[b, i]]
        for h in range(2):
            scores += [(s[b, h, i, j] - t[b, h, i, j]).item() ** 2 for i in keep for j in keep]
            for i in keep:
                p = softmax([(y[b, h, i] @ y[b, h, j]).item() / math.sqrt(5) for j in keep])
                q = softmax([(x[b, h, i] @ x[b, h, j]).item() / math.sqrt(4) for j in keep])
                rows.append(kl(p, q))
    dirty = s.clone()
    dirty.masked_fill_(~(mask[:, None, :, None] & mask[:, None, None, :]), float("nan"))
    leaf = dirty.requires_grad_()
    got = F.attention_mse_loss(leaf, t, mask=mask)
    assert got.item() == pytest.approx(np.mean(scores) if scores else 0.0, abs=1e-9)
    got.backward()
    assert torch.isfinite(leaf.grad).all()
    dirty = x.clone()
    dirty[~mask[:, None, :].expand(2, 2, 3)] = float("inf")
    leaf = dirty.requires_grad_()
    got = F.relation_loss(leaf, y, mask=mask)
    assert got.item() == pytest.approx(np.mean(rows) if rows else 0.0, abs=1e-9)
    got.backward()
    assert torch.isfinite(leaf.grad).all()
    assert torch.autograd.gradcheck(lambda z: F.relation_loss(z, y, mask=mask), x.requires_grad_())
