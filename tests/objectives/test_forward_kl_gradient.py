"""The forward KL's gradient is written out: held against the same loss differentiated by autograd."""

import math

import pytest
import torch
from torch.autograd.functional import hessian

import decoct.functional as F
from decoct.errors import RecipeError
from decoct.objectives import _divergence
from decoct.objectives._numeric import item_mean, weighing

MASK = torch.tensor([[True, False], [True, True], [False, True]])
WEIGHTS = torch.tensor([[0.5, 0.0], [2.0, 1.0], [0.0, 3.0]], dtype=torch.float64)


def draw(seed=0, dtype=torch.float64, shape=(3, 2, 4)):
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2)]


def by_autograd(student, teacher, temperature, mask=None):
    return item_mean(_divergence.forward_kl(student, teacher, temperature=temperature), mask)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_value_first_and_second_derivatives(temperature, mask, weights):
    student, teacher = draw()

    def weighed(loss, *args, **options):
        with weighing("here", weights):
            return loss(*args, **options)

    def ours(x):
        return weighed(F.forward_kl_loss, x, teacher, temperature=temperature, mask=mask)

    def theirs(x):
        return weighed(by_autograd, x, teacher, temperature, mask)

    def kd(x):
        return weighed(F.kd_loss, x, teacher, temperature=temperature, mask=mask)

    x = student.requires_grad_()
    for one, factor in ((ours, 1.0), (kd, temperature**2)):
        torch.testing.assert_close(one(x), factor * theirs(x), rtol=1e-13, atol=0)
        gradients = [torch.autograd.grad(loss(x), x)[0] for loss in (one, theirs)]
        torch.testing.assert_close(gradients[0], factor * gradients[1], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(hessian(one, x), factor * hessian(theirs, x), rtol=1e-11, atol=1e-13)
        assert hessian(one, x).abs().max() > 1e-3
        assert torch.autograd.gradgradcheck(one, x)


def test_the_gradient_of_a_gradient_has_the_same_values_as_the_gradient():
    student, teacher = draw(1)
    x = student.requires_grad_()
    plain, again = (torch.autograd.grad(F.kd_loss(x, teacher), x, create_graph=graph)[0] for graph in (False, True))
    assert torch.equal(plain, again)
    assert again.requires_grad


@pytest.mark.parametrize("both", [True, False])
def test_classes_at_minus_infinity(both):
    """On both sides: as if the classes were not there. In the student alone: infinite, with the gradient q − p."""
    (student, teacher), pad = draw(2, shape=(3, 4)), torch.full((3, 2), -torch.inf, dtype=torch.float64)
    wide = torch.cat([student, pad], 1).requires_grad_()
    padded = torch.cat([teacher, pad if both else torch.zeros_like(pad)], 1)
    loss = F.kd_loss(wide, padded, temperature=2.0)
    (slope,) = torch.autograd.grad(loss, wide, create_graph=True)
    expected = 2 / 3 * ((wide / 2).softmax(-1) - (padded / 2).softmax(-1))
    torch.testing.assert_close(slope, expected)
    if not both:
        assert loss.item() == math.inf
        return
    assert loss.item() == pytest.approx(F.kd_loss(student, teacher, temperature=2.0).item(), abs=1e-14)
    second = torch.autograd.grad((slope[:, :4] * teacher).sum(), wide)[0]
    x = student.requires_grad_()
    (narrow,) = torch.autograd.grad(F.kd_loss(x, teacher, temperature=2.0), x, create_graph=True)
    torch.testing.assert_close(second[:, :4], torch.autograd.grad((narrow * teacher).sum(), x)[0])
    assert (second[:, 4:] == 0).all()


def test_a_class_that_only_the_teacher_lacks():
    (student, teacher) = draw(3)
    teacher[..., 1] = -torch.inf
    x = student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: F.kd_loss(x, teacher, temperature=2.0), x)
    assert torch.autograd.gradgradcheck(lambda x: F.kd_loss(x, teacher, temperature=2.0), x)
    assert torch.isfinite(F.kd_loss(x, teacher))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_at_equality_and_small_near_it(dtype):
    logits = draw(4, dtype, (64, 100))[0]
    assert F.kd_loss(logits, logits).item() == 0
    assert F.kd_loss(logits[None], logits[None], mask=torch.ones(1, 64, dtype=torch.bool)).item() == 0
    near = (logits.double() * (1 + 1e-3)).float()
    exact = F.kd_loss(near.double(), logits.double()).item()
    assert F.kd_loss(near, logits).item() == pytest.approx(exact, abs=1e-6)


def test_nan_is_not_hidden():
    student, teacher = draw(5)
    for side in (0, 1):
        pair = [student.clone(), teacher.clone()]
        pair[side][0, 0, 0] = torch.nan
        assert F.kd_loss(*pair).isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gradient_under_autocast(dtype):
    student, teacher = (each.to(dtype) for each in draw(6))
    x, exact = student.clone().requires_grad_(), student.float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.kd_loss(x, teacher)
        loss.backward()
    F.kd_loss(exact, teacher.float()).backward()
    assert loss.dtype == torch.float32
    assert torch.equal(x.grad, exact.grad.to(dtype))


def test_a_temperature_that_takes_a_gradient_is_refused():
    student, teacher = draw(7)
    with pytest.raises(RecipeError, match="temperature takes a gradient"):
        F.kd_loss(student, teacher, temperature=torch.tensor(2.0, requires_grad=True))


def test_compiled_whole():
    """Traced in one graph, backward too; kernels are not made."""
    student, teacher = draw(8)
    compiled = torch.compile(F.kd_loss, fullgraph=True, backend="aot_eager")
    one, two = student.clone().requires_grad_(), student.clone().requires_grad_()
    for loss, x in ((F.kd_loss, one), (compiled, two)):
        loss(x, teacher, temperature=2.0).backward()
    torch.testing.assert_close(one.grad, two.grad)
    target = torch.zeros(3, 2, dtype=torch.long)
    whole = torch.compile(F.cross_entropy, fullgraph=True, backend="aot_eager")
    assert whole(student, target).item() == pytest.approx(F.cross_entropy(student, target).item())
