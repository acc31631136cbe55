"""The functions inside learned terms against loops in NumPy float64, written from the definitions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import decoct.functional as F
from decoct.errors import RecipeError
from decoct.objectives.focal_global import box_masks

SEEDS = st.integers(0, 1000)


def draw(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def unit(v):
    return v / max(math.sqrt(sum(x * x for x in v)), 1e-12)


def softmax(row):
    e = np.exp(np.asarray(row) - max(row))
    return e / e.sum()


def contrastive(student, teacher, negatives, temperature, keep, normalizer=None):
    def e(a, b):
        return math.exp(float(unit(a) @ unit(b)) / temperature)

    rows = []
    for i, (a, b) in enumerate(zip(student, teacher)):
        others = negatives[i] if negatives.ndim == 3 else negatives
        rows.append((e(a, b), [e(a, c) for c, kept in zip(others, keep[i]) if kept]))
    scores = [near for near, _ in rows] + [each for _, apart in rows for each in apart]
    z = sum(scores) / len(scores) if normalizer is None else normalizer
    total = 0.0
    for near, apart in rows:
        k = len(apart)
        total -= math.log((near / z) / (near / z + k))
        total -= sum(math.log(k / (each / z + k)) for each in apart)
    return total / len(rows)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, size=st.integers(1, 4), count=st.integers(1, 5), each=st.booleans(), temperature=st.floats(0.05, 2))
def test_contrastive(seed, size, count, each, temperature):
    s, t, n = draw(seed, (size, 3), (size, 3), (size, count, 3) if each else (count, 3))
    keep = torch.rand(size, count, generator=torch.Generator().manual_seed(seed)) > 0.3
    got = F.contrastive_loss(s, t, n, temperature=temperature, keep=keep)
    expected = contrastive(s.numpy(), t.numpy(), n.numpy(), temperature, keep.numpy())
    assert got.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    fixed = F.contrastive_loss(s, t, n, temperature=temperature, log_normalizer=torch.tensor(1.5).double())
    everything = np.ones_like(keep.numpy())
    expected = contrastive(s.numpy(), t.numpy(), n.numpy(), temperature, everything, math.exp(1.5))
    assert fixed.item() == pytest.approx(expected, rel=1e-9)


def test_contrastive_takes_gradients_to_the_student_alone_and_stays_finite():
    s, t, n = draw(1, (3, 4), (3, 4), (5, 4))
    scale = torch.tensor(0.3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: F.contrastive_loss(x, t, n, log_normalizer=scale), s.requires_grad_())
    for each in (t.requires_grad_(), n.requires_grad_()):
        F.contrastive_loss(s, t, n).backward()
        assert each.grad is None
    for factor in (0.0, 1e4):
        x = (factor * s.detach()).float().requires_grad_()
        loss = F.contrastive_loss(x, t.float(), n.float(), temperature=0.01)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(x.grad).all()
    alone = F.contrastive_loss(s, t, n, keep=torch.zeros(3, 5, dtype=torch.bool))
    assert alone.item() == 0


def pool(x, size):
    """Adaptive average pooling of [H, W] to (h, w), window by window."""
    H, W = x.shape
    h, w = size
    return np.array(
        [
            [x[i * H // h : -(-(i + 1) * H // h), j * W // w : -(-(j + 1) * W // w)].mean() for j in range(w)]
            for i in range(h)
        ]
    )


def afd(student, teacher, attention):
    total = 0.0
    for i, t in enumerate(teacher):
        rows = []
        for b in range(len(t)):
            wanted = unit((t[b] ** 2).mean(0).ravel())
            row = 0.0
            for j, s in enumerate(student):
                strength = (s[b] ** 2).mean(0)
                same = strength.shape == t.shape[2:]
                place = unit((strength if same else pool(strength, t.shape[2:])).ravel())
                row += attention[b, i, j] * np.mean([(x - y) ** 2 for x, y in zip(place, wanted)])
            rows.append(row)
        total += np.mean(rows)
    return total


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, size=st.integers(1, 3))
def test_afd(seed, size):
    *maps, scores = draw(seed, (size, 2, 5, 5), (size, 3, 3, 3), (size, 4, 4, 4), (size, 2, 5, 5), (size, 2, 2))
    attention = torch.softmax(scores, -1)
    got = F.afd_loss(maps[:2], maps[2:], attention)
    expected = afd([x.numpy() for x in maps[:2]], [x.numpy() for x in maps[2:]], attention.numpy())
    assert got.item() == pytest.approx(expected, abs=1e-12)


def test_afd_gradients():
    a, b, t, scores = draw(3, (2, 2, 3, 3), (2, 3, 4, 4), (2, 2, 3, 3), (2, 1, 2))
    alpha = torch.softmax(scores, -1).requires_grad_()
    t.requires_grad_()
    leaves = (a.requires_grad_(), b.requires_grad_(), alpha)
    assert torch.autograd.gradcheck(lambda x, y, z: F.afd_loss([x, y], [t], z), leaves)
    F.afd_loss([a, b], [t], alpha).backward()
    assert t.grad is None
    assert F.afd_loss([a.detach(), a.detach()], [a.detach()], alpha).item() == 0


def head_alignment(student, teacher, weight, kept):
    rows = []
    for b in range(len(teacher)):
        for h in range(teacher.shape[1]):
            for i in range(teacher.shape[2]):
                if not kept[b, i]:
                    continue

                def row(x, b=b, i=i):
                    chosen = np.array([v if k else 0.0 for v, k in zip(x[i], kept[b])])
                    return chosen / chosen.sum()

                p = row(teacher[b, h])
                q = sum(w * row(x) for w, x in zip(weight[h], student[b]))
                rows.append(sum(x * (math.log(x) - math.log(y)) for x, y in zip(p, q) if x > 0))
    return np.mean(rows) if rows else 0.0


@settings(max_examples=15, deadline=None)
@given(
    seed=SEEDS, heads=st.integers(1, 3), wanted=st.integers(1, 3), kept=st.lists(st.booleans(), min_size=8, max_size=8)
)
def test_head_alignment(seed, heads, wanted, kept):
    s, t, w = draw(seed, (2, heads, 4, 4), (2, wanted, 4, 4), (wanted, heads))
    s, t, w = s.softmax(-1), t.softmax(-1), w.softmax(-1)
    mask = torch.tensor(kept).reshape(2, 4)
    got = F.head_alignment_loss(s, t, w, mask=mask)
    assert got.item() == pytest.approx(head_alignment(s.numpy(), t.numpy(), w.numpy(), mask.numpy()), abs=1e-10)
    whole = F.head_alignment_loss(s, t, w)
    everywhere = np.ones((2, 4), dtype=bool)
    assert whole.item() == pytest.approx(head_alignment(s.numpy(), t.numpy(), w.numpy(), everywhere), abs=1e-10)


def test_head_alignment_is_zero_at_equality_and_takes_gradients():
    s, t, w = draw(4, (2, 2, 3, 3), (2, 3, 3, 3), (3, 2))
    s, t, w = s.softmax(-1).requires_grad_(), t.softmax(-1), w.softmax(-1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: F.head_alignment_loss(x, t, y), (s, w))
    same = F.head_alignment_loss(s, s, torch.eye(2, dtype=torch.float64))
    assert abs(same.item()) < 1e-14
    zeros = torch.zeros(2, 2, 3, 3, requires_grad=True)
    loss = F.head_alignment_loss(zeros, t.float(), w.float())
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(zeros.grad).all()


def layer_fusion(student, teacher, temperature, kept):
    gaps = []
    for place in np.ndindex(*student.shape[:-1]):
        if kept[place]:
            s = student[place]
            alpha = softmax([float(s @ t[place]) / temperature for t in teacher])
            fused = sum(a * t[place] for a, t in zip(alpha, teacher))
            gaps += [(x - y) ** 2 for x, y in zip(s, fused)]
    return np.mean(gaps) if gaps else 0.0


@settings(max_examples=15, deadline=None)
@given(
    seed=SEEDS,
    layers=st.integers(1, 3),
    temperature=st.floats(0.5, 4),
    kept=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_layer_fusion(seed, layers, temperature, kept):
    s, *t = draw(seed, *[(2, 3, 4)] * (layers + 1))
    mask = torch.tensor(kept).reshape(2, 3)
    arrays = [x.numpy() for x in t]
    got = F.layer_fusion_loss(s, t, temperature=temperature, mask=mask)
    assert got.item() == pytest.approx(layer_fusion(s.numpy(), arrays, temperature, mask.numpy()), abs=1e-10)
    vectors = F.layer_fusion_loss(s[:, 0], [x[:, 0] for x in t], temperature=temperature)
    everywhere = np.ones(2, dtype=bool)
    expected = layer_fusion(s[:, 0].numpy(), [x[:, 0] for x in arrays], temperature, everywhere)
    assert vectors.item() == pytest.approx(expected, abs=1e-10)


def test_layer_fusion_gradients():
    s, *t = draw(5, *[(2, 3, 4)] * 3)
    for each in t:
        each.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: F.layer_fusion_loss(x, t), s.requires_grad_())
    F.layer_fusion_loss(s, t).backward()
    assert all(each.grad is None for each in t)
    assert F.layer_fusion_loss(s, [s]).item() == 0


def boxed(boxes, height, width):
    inside = np.zeros((height, width))
    for x0, y0, x1, y1 in boxes:
        if x1 <= x0 or y1 <= y0:
            continue
        left, right = math.floor(x0 * width), math.ceil(x1 * width)
        top, bottom = math.floor(y0 * height), math.ceil(y1 * height)
        area = (right + 1 - left) * (bottom + 1 - top)
        for i in range(max(top, 0), min(bottom, height - 1) + 1):
            for j in range(max(left, 0), min(right, width - 1) + 1):
                inside[i, j] = max(inside[i, j], 1 / area)
    outside = (inside == 0).astype(float)
    return inside, outside / max(outside.sum(), 1)


def focal_global(s, t, boxes, temperature=0.5, alpha=0.001, beta=0.0005, gamma=0.001):
    B, C, H, W = s.shape
    total = 0.0
    for b in range(B):

        def strengths(x):
            places = H * W * softmax((np.abs(x).mean(0) / temperature).ravel()).reshape(H, W)
            return places, C * softmax(np.abs(x).mean((1, 2)) / temperature)

        own, theirs = strengths(s[b]), strengths(t[b])
        inside, outside = boxed(boxes[b], H, W)
        for c, i, j in np.ndindex(C, H, W):
            gap = theirs[0][i, j] * theirs[1][c] * (s[b, c, i, j] - t[b, c, i, j]) ** 2
            total += (alpha * inside[i, j] + beta * outside[i, j]) * gap
        total += gamma * (np.abs(own[0] - theirs[0]).sum() + np.abs(own[1] - theirs[1]).sum())
    return total / B


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, size=st.integers(1, 3), height=st.integers(1, 5), width=st.integers(1, 5), count=st.integers(0, 3))
def test_focal_global(seed, size, height, width, count):
    s, t = draw(seed, *[(size, 2, height, width)] * 2)
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(size, count, 4, generator=generator, dtype=torch.float64)
    boxes = boxes if seed % 3 else boxes.round()
    got = F.focal_global_loss(s, t, boxes)
    assert got.item() == pytest.approx(focal_global(s.numpy(), t.numpy(), boxes.numpy()), rel=1e-9, abs=1e-14)
    for b in range(size):
        inside, outside = (each[b].numpy() for each in box_masks(boxes, height, width))
        expected = boxed(boxes[b].tolist(), height, width)
        np.testing.assert_allclose(inside, expected[0])
        np.testing.assert_allclose(outside, expected[1])


def test_focal_global_gradients():
    s, t = draw(6, (2, 3, 4, 4), (2, 3, 4, 4))
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5]], [[0.2, 0.4, 0.2, 0.9]]], dtype=torch.float64)
    t.requires_grad_()
    weights = {"alpha": 0.5, "beta": 0.25, "gamma": 0.125}
    assert torch.autograd.gradcheck(lambda x: F.focal_global_loss(x, t, boxes, **weights), s.requires_grad_())
    F.focal_global_loss(s, t, boxes).backward()
    assert t.grad is None
    x = t.detach().clone().requires_grad_()
    loss = F.focal_global_loss(x, t, boxes)
    loss.backward()
    assert loss.item() == 0
    assert (x.grad == 0).all()


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, size=st.integers(1, 5))
def test_discriminator(seed, size):
    s, t = draw(seed, (size, 1), (size, 1))

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    rows = [-0.5 * (math.log(1 - sigmoid(a)) + math.log(sigmoid(b))) for a, b in zip(s.flatten(), t.flatten())]
    assert F.discriminator_loss(s, t).item() == pytest.approx(np.mean(rows), rel=1e-9)
    leaves = (s.requires_grad_(), t.requires_grad_())
    assert torch.autograd.gradcheck(F.discriminator_loss, leaves)
    large = F.discriminator_loss(torch.tensor([1e4]), torch.tensor([-1e4]))
    assert large.item() == pytest.approx(1e4)


def test_a_reversed_gradient():
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    y = F.reverse_gradient(x, 0.25)
    assert torch.equal(x, y)
    (y * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad.tolist() == [-0.25, -0.5, -0.75]


def test_unlike_shapes_name_both():
    a, b, maps, heads = draw(7, (3, 4), (3, 5), (2, 3, 4, 4), (2, 3, 4, 4))
    with pytest.raises(RecipeError, match=r"student \[3, 4\], teacher \[3, 5\]"):
        F.contrastive_loss(a, b, a)
    with pytest.raises(RecipeError, match=r"attention \[3, 4\]"):
        F.afd_loss([maps], [maps], a)
    with pytest.raises(RecipeError, match=r"weight \[3, 4\], student \[2, 3, 4, 4\]"):
        F.head_alignment_loss(heads, heads, a)
    with pytest.raises(RecipeError, match=r"student \[3, 4\] and teacher \[3, 5\]"):
        F.layer_fusion_loss(a, [a, b])
    with pytest.raises(RecipeError, match=r"boxes \[3, 4\]"):
        F.focal_global_loss(maps, maps, a)
    with pytest.raises(RecipeError, match=r"\[3, 4\] and \[3, 5\]"):
        F.discriminator_loss(a, b)
