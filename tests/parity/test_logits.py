"""Losses over logits against loops in NumPy float64, written from the definitions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import decoct.functional as F
from decoct.errors import RecipeError


def softmax(row, temperature=1.0):
    row = [x / temperature for x in row]
    top = max(row)
    parts = [math.exp(x - top) for x in row]
    return [x / sum(parts) for x in parts]


def kl(a, b):
    return sum(x * (math.log(x) - math.log(y)) for x, y in zip(a, b) if x > 0)


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def kd(s, t, y, temperature=4.0):
    return temperature**2 * mean(kl(softmax(b, temperature), softmax(a, temperature)) for a, b in zip(s, t))


def soft_ce(s, t, y, temperature=1.0):
    rows = []
    for a, b in zip(s, t):
        q = softmax(a, temperature)
        rows.append(-sum(p * math.log(q[c]) for c, p in enumerate(softmax(b, temperature))))
    return mean(rows)


def logit_mse(s, t, y, temperature=1.0):
    return mean(((a - b) / temperature) ** 2 for x, z in zip(s, t) for a, b in zip(x, z))


def dkd(s, t, y, alpha=1.0, beta=8.0, temperature=4.0):
    target, rest = [], []
    for a, b, c in zip(s, t, y):
        q, p = softmax(a, temperature), softmax(b, temperature)
        if len(p) == 1:
            target.append(0.0), rest.append(0.0)
            continue
        target.append(kl([p[c], sum(p) - p[c]], [q[c], sum(q) - q[c]]))
        drop = [[x for i, x in enumerate(row) if i != c] for row in (b, a)]
        rest.append(kl(softmax(drop[0], temperature), softmax(drop[1], temperature)))
    return temperature**2 * (alpha * mean(target) + beta * mean(rest))


def nkd(s, t, y, gamma=1.5, temperature=1.0):
    own, rest = [], []
    for a, b, c in zip(s, t, y):
        own.append(-softmax(b)[c] * math.log(softmax(a)[c]))
        drop = [[x for i, x in enumerate(row) if i != c] for row in (b, a)]
        p, q = (softmax(each, temperature) if each else [] for each in drop)
        rest.append(-sum(x * math.log(z) for x, z in zip(p, q)))
    return mean(own) + gamma * temperature**2 * mean(rest)


def correlation(a, b):
    a, b = np.array(a) - np.mean(a), np.array(b) - np.mean(b)
    return float(a @ b / (math.sqrt(a @ a) * math.sqrt(b @ b) + 1e-8))


def dist(s, t, y, beta=1.0, gamma=1.0, temperature=1.0):
    if not len(s):
        return 0.0
    q = [softmax(a, temperature) for a in s]
    p = [softmax(b, temperature) for b in t]
    rows = mean(correlation(a, b) for a, b in zip(p, q))
    columns = mean(correlation([r[c] for r in p], [r[c] for r in q]) for c in range(len(p[0])))
    return temperature**2 * (beta * (1 - rows) + gamma * (1 - columns))


def wsld(s, t, y, temperature=2.0, weights=None):
    rows = []
    for i, (a, b, c) in enumerate(zip(s, t, y)):
        own, theirs = -math.log(softmax(a)[c]), -math.log(softmax(b)[c])
        w = 1 - math.exp(-max(own / (theirs + 1e-7), 0)) if weights is None else weights[i]
        q = softmax(a, temperature)
        rows.append(w * -sum(p * math.log(q[k]) for k, p in enumerate(softmax(b, temperature))))
    return temperature**2 * mean(rows)


def correlations(s, t, temperature, by_class):
    q = [softmax(a, temperature) for a in s]
    p = [softmax(b, temperature) for b in t]
    if by_class:
        p, q = list(zip(*p)), list(zip(*q))
    total = 0.0
    for i in range(len(p)):
        for j in range(len(p)):
            total += (sum(x * z for x, z in zip(p[i], p[j])) - sum(x * z for x, z in zip(q[i], q[j]))) ** 2
    return total / len(p) if len(p) else 0.0


def class_correlation(s, t, y, temperature=4.0):
    return correlations(s, t, temperature, True) if len(s) else 0.0


def batch_correlation(s, t, y, temperature=4.0):
    return correlations(s, t, temperature, False)


def binary_kd(s, t, y, temperature=1.0):
    rows = []
    for a, b in zip(s, t):
        total = 0.0
        for x, z in zip(a, b):
            q, p = 1 / (1 + math.exp(-x / temperature)), 1 / (1 + math.exp(-z / temperature))
            total += kl([p, 1 - p], [q, 1 - q])
        rows.append(total)
    return temperature**2 * mean(rows)


def cross_entropy(s, t, y):
    return mean(-math.log(softmax(a)[c]) for a, c in zip(s, y))


def taylor(s, t, y, order=2):
    return mean(sum((1 - softmax(a)[c]) ** k / k for k in range(1, order + 1)) for a, c in zip(s, y))


# name: (function of student, teacher, target and options, oracle, takes a target, options to try)
LOSSES = {
    "kd": (F.kd_loss, kd, False, [{}, {"temperature": 1.0}]),
    "soft_cross_entropy": (F.soft_cross_entropy, soft_ce, False, [{}, {"temperature": 3.0}]),
    "logit_mse": (F.logit_mse_loss, logit_mse, False, [{}, {"temperature": 2.0}]),
    "dkd": (F.dkd_loss, dkd, True, [{}, {"alpha": 0.5, "beta": 2.0, "temperature": 1.5}]),
    "nkd": (F.nkd_loss, nkd, True, [{}, {"gamma": 0.7, "temperature": 2.0}]),
    "dist": (F.dist_loss, dist, False, [{}, {"beta": 2.0, "gamma": 0.5, "temperature": 4.0}]),
    "wsld": (F.wsld_loss, wsld, True, [{}, {"temperature": 1.0}]),
    "class_correlation": (F.class_correlation_loss, class_correlation, False, [{}, {"temperature": 1.0}]),
    "batch_correlation": (F.batch_correlation_loss, batch_correlation, False, [{}, {"temperature": 1.0}]),
    "binary_kd": (F.binary_kd_loss, binary_kd, False, [{}, {"temperature": 3.0}]),
    "cross_entropy": (lambda s, t, y, **o: F.cross_entropy(s, y, **o), cross_entropy, True, [{}]),
    "taylor_cross_entropy": (
        lambda s, t, y, **o: F.taylor_cross_entropy_loss(s, y, **o),
        taylor,
        True,
        [{}, {"order": 1}, {"order": 5}],
    ),
}
WITHOUT_TEACHER = ["cross_entropy", "taylor_cross_entropy"]
ZERO_AT_EQUALITY = ["kd", "logit_mse", "dkd", "class_correlation", "batch_correlation", "binary_kd"]


def run(name, s, t, y, **options):
    function, _, takes_target, _ = LOSSES[name]
    return function(s, t, y, **options) if takes_target else function(s, t, **options)


def draw(seed, items, classes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    s, t = (3 * torch.randn(items, classes, generator=generator, dtype=dtype) for _ in range(2))
    return s, t, torch.randint(classes, (items,), generator=generator)


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), items=st.sampled_from([1, 2, 5]), classes=st.sampled_from([1, 2, 3, 7]))
def test_value_is_that_of_the_definition(name, seed, items, classes):
    s, t, y = draw(seed, items, classes)
    for options in LOSSES[name][3]:
        got = run(name, s, t, y, **options)
        assert got.dtype == torch.float64
        assert got.shape == ()
        assert got.item() == pytest.approx(LOSSES[name][1](s.tolist(), t.tolist(), y.tolist(), **options), abs=1e-9)


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), kept=st.lists(st.booleans(), min_size=6, max_size=6))
def test_a_mask_is_the_same_as_leaving_the_items_out(name, seed, kept):
    s, t, y = draw(seed, 6, 4)
    mask = torch.tensor(kept)
    expected = LOSSES[name][1](s[mask].tolist(), t[mask].tolist(), y[mask].tolist())
    for fill in (0.0, 1e30, float("nan"), float("inf")):
        a, b = s.clone(), t.clone()
        a[~mask], b[~mask] = fill, -fill
        target = torch.where(mask, y, -100)
        a = a.reshape(2, 3, 4).requires_grad_()
        got = run(name, a, b.reshape(2, 3, 4), target.reshape(2, 3), mask=mask.reshape(2, 3))
        assert got.item() == pytest.approx(expected, abs=1e-9)
        got.backward()
        assert torch.isfinite(a.grad).all()
        assert (a.grad.reshape(6, 4)[~mask] == 0).all()


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "wsld"])
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_gradient_by_finite_differences(name, classes):
    s, t, y = draw(3, 4, classes)
    mask = torch.tensor([True, False, True, True])
    for options in LOSSES[name][3]:
        assert torch.autograd.gradcheck(lambda x, o=options: run(name, x, t, y, **o), s.requires_grad_())
        assert torch.autograd.gradcheck(lambda x, o=options: run(name, x, t, y, mask=mask, **o), s.requires_grad_())


def test_wsld_takes_no_gradient_through_its_weights():
    s, t, y = draw(5, 3, 4)
    own = [-math.log(softmax(a)[c]) for a, c in zip(s.tolist(), y.tolist())]
    theirs = [-math.log(softmax(b)[c]) for b, c in zip(t.tolist(), y.tolist())]
    weights = [1 - math.exp(-a / (b + 1e-7)) for a, b in zip(own, theirs)]
    s.requires_grad_()
    F.wsld_loss(s, t, y).backward()
    for i in range(3):
        for c in range(4):
            up, down = s.detach().clone(), s.detach().clone()
            up[i, c] += 1e-6
            down[i, c] -= 1e-6
            slope = (wsld(up.tolist(), t, y, weights=weights) - wsld(down.tolist(), t, y, weights=weights)) / 2e-6
            assert s.grad[i, c].item() == pytest.approx(slope, abs=1e-7)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["student", "teacher", "both", "equal", "constant"])
def test_finite_at_large_logits(name, dtype, case):
    s, t, y = draw(7, 4, 5, dtype)
    scale = {"student": (1e4, 1), "teacher": (1, 1e4), "both": (1e4, 1e4), "equal": (1e4, 1e4), "constant": (0, 0)}[
        case
    ]
    s, t = (x.sign() * f + (1e4 if case == "constant" else 0) for x, f in zip((s, t), scale))
    t = s.clone() if case == "equal" else t
    s.requires_grad_()
    loss = run(name, s, t, y)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(s.grad).all()
    if case in ("equal", "constant") and name in ZERO_AT_EQUALITY:
        assert loss.item() == pytest.approx(0, abs=1e-5)
        assert s.grad.abs().max().item() < 1e-5


@pytest.mark.parametrize("name", ["kd", "soft_cross_entropy", "logit_mse", "dkd", "nkd", "binary_kd", "wsld"])
def test_a_class_at_minus_infinity_on_both_sides_adds_nothing(name):
    s, t, y = draw(11, 4, 5)
    pad = torch.full((4, 2), -torch.inf, dtype=torch.float64)
    plain, padded = s.clone().requires_grad_(), torch.cat([s, pad], 1).requires_grad_()
    one = run(name, plain, t, y)
    two = run(name, padded, torch.cat([t, pad], 1), y)
    expected = one.item() * (5 / 7 if name == "logit_mse" else 1)
    assert two.item() == pytest.approx(expected, abs=1e-12)
    one.backward()
    two.backward()
    assert (padded.grad[:, 5:] == 0).all()
    torch.testing.assert_close(padded.grad[:, :5], plain.grad * (5 / 7 if name == "logit_mse" else 1))


@pytest.mark.parametrize("name", ZERO_AT_EQUALITY)
def test_zero_at_equality(name):
    s, _, y = draw(13, 6, 5)
    x = s.clone().requires_grad_()
    loss = run(name, x, s, y)
    loss.backward()
    assert loss.item() == 0
    assert x.grad.abs().max().item() < 1e-12


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_cast_up_also_under_autocast(name):
    s, t, y = draw(17, 4, 5, torch.float32)
    exact = run(name, s.bfloat16().float(), t.bfloat16().float(), y)
    half = s.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = run(name, half, t.bfloat16(), y)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), abs=1e-6)
    loss.backward()
    assert half.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("name", LOSSES)
def test_no_gradient_into_the_teacher(name):
    s, t, y = draw(19, 4, 5)
    s.requires_grad_()
    t.requires_grad_()
    run(name, s, t, y).backward()
    assert t.grad is None


@pytest.mark.parametrize("name", ["dkd", "nkd", "wsld", "cross_entropy", "taylor_cross_entropy"])
@pytest.mark.parametrize("target", [-100, 255, -(2**63)])
def test_a_target_outside_the_classes_is_refused(name, target):
    s, t, y = draw(23, 3, 5)
    y[1] = target
    with pytest.raises(RecipeError, match=f"target {target} lies outside the 5 classes"):
        run(name, s, t, y)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in WITHOUT_TEACHER])
def test_unlike_shapes_name_both(name):
    s, t, y = draw(29, 3, 5)
    with pytest.raises(RecipeError, match=r"\[3, 5\] and teacher \[3, 4\]"):
        run(name, s, t[:, :4], y)


def test_the_taylor_series_grows_to_the_cross_entropy():
    s, _, y = draw(37, 6, 4)
    whole = F.cross_entropy(s, y).item()
    values = [F.taylor_cross_entropy_loss(s, y, order=order).item() for order in (1, 2, 3, 10, 100, 100_000)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(whole, abs=1e-4)
    assert values[0] == pytest.approx((1 - torch.softmax(s, 1)[torch.arange(6), y]).mean().item(), abs=1e-12)
    with pytest.raises(RecipeError, match="order is 0"):
        F.taylor_cross_entropy_loss(s, y, order=0)


def test_standardize_logits():
    s, _, _ = draw(31, 4, 5)
    s[2] = 1e4
    expected = [[(x - mean(row)) / (1e-7 + np.std(row, ddof=1)) for x in row] for row in s.tolist()]
    np.testing.assert_allclose(F.standardize_logits(s).numpy(), expected, atol=1e-9)
    live = s[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(F.standardize_logits, live)
    flat = torch.full((1, 3), 7.0, requires_grad=True)
    F.standardize_logits(flat)[0, 0].backward()
    torch.testing.assert_close(flat.grad, torch.tensor([[2.0, -1.0, -1.0]]) / 3 / 1e-7)
    one = torch.ones(2, 1)
    assert (F.standardize_logits(one) == 0).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), items=st.sampled_from([1, 3, 6]), margin=st.sampled_from([0.0, 0.5]))
def test_regression_kd(seed, items, margin):
    generator = torch.Generator().manual_seed(seed)
    s, t, y = (torch.randn(items, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    total = 0.0
    for a, b, c in zip(s.flatten().tolist(), t.flatten().tolist(), y.flatten().tolist()):
        total += ((a - c) ** 2 if (a - c) ** 2 + margin > (b - c) ** 2 else 0.0) + (a - b) ** 2
    assert F.regression_kd_loss(s, t, y, margin=margin).item() == pytest.approx(total / (2 * items), abs=1e-12)
    mask = torch.arange(items) > 0
    rest = F.regression_kd_loss(s[1:], t[1:], y[1:], margin=margin)
    y[0] = float("nan")
    x = s.clone().requires_grad_()
    masked = F.regression_kd_loss(x, t, y, margin=margin, mask=mask)
    assert masked.item() == pytest.approx(rest.item(), abs=1e-12)
    masked.backward()
    assert (x.grad[0] == 0).all()


def test_robust_losses_are_sums_of_their_parts():
    s, t, y = draw(37, 4, 5)
    clean, _, _ = draw(38, 4, 5)
    whole = F.ard_loss(s, clean, t, y, alpha=0.3, temperature=2.0).item()
    expected = 0.3 * kd(s.tolist(), t.tolist(), y, 2.0) + 0.7 * cross_entropy(clean.tolist(), t, y.tolist())
    assert whole == pytest.approx(expected, abs=1e-9)
    parts = [kd(x.tolist(), t.tolist(), y, 1.0) for x in (s, clean)]
    assert F.rslad_loss(s, clean, t).item() == pytest.approx(5 / 6 * parts[0] + 1 / 6 * parts[1], abs=1e-9)
    weight = torch.rand(4, dtype=torch.float64)
    rows = [100 * kl(softmax(b, 10.0), softmax(a, 10.0)) for a, b in zip(s.tolist(), t.tolist())]
    expected = mean(w * r for w, r in zip(weight.tolist(), rows))
    assert F.localization_loss(s, t, weight=weight).item() == pytest.approx(expected, abs=1e-9)
    mask = torch.tensor([True, False, True, True])
    masked = F.localization_loss(s, t, weight=weight, mask=mask)
    assert masked.item() == pytest.approx(F.localization_loss(s[mask], t[mask], weight=weight[mask]).item(), abs=1e-12)
    empty = torch.zeros(4, dtype=torch.bool)
    assert F.ard_loss(s, clean, t, y, mask=empty).item() == 0
    assert F.rslad_loss(s, clean, t, mask=empty).item() == 0


def test_label_smoothing_is_torch_s():
    s, _, y = draw(41, 4, 5)
    expected = torch.nn.functional.cross_entropy(s, y, label_smoothing=0.2)
    assert F.cross_entropy(s, y, label_smoothing=0.2).item() == expected.item()


def test_labels_may_be_smoothed_from_not_at_all_to_the_even_distribution():
    s, _, y = draw(37, 4, 5)
    log_q = s.double().log_softmax(-1).numpy()
    one_hot = np.eye(5)[y.numpy()]
    for amount in (0.0, 1.0):
        expected = -(((1 - amount) * one_hot + amount / 5) * log_q).sum(-1).mean()
        for target in (y, torch.from_numpy(one_hot).to(s)):
            found = F.cross_entropy(s, target, label_smoothing=amount)
            assert found.item() == pytest.approx(expected, rel=1e-6)
    for amount in (math.nextafter(0, -1), math.nextafter(1, 2), math.nan):
        with pytest.raises(RecipeError, match=r"label_smoothing is .*; allowed: 0 to 1"):
            F.cross_entropy(s, y, label_smoothing=amount)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in WITHOUT_TEACHER])
def test_a_temperature_that_is_no_number_above_zero_is_refused(name):
    s, t, y = draw(41, 3, 5)
    assert torch.isfinite(run(name, s, t, y, temperature=1e-3))
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(RecipeError, match=f"temperature is {wrong}; allowed: a number above 0"):
            run(name, s, t, y, temperature=wrong)
