"""Fake quantization against NumPy in float64, the papers' definitions, and ONNX Runtime's own operators."""

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from decoct.quantization.fake import (
    affine_range,
    affine_scale,
    dynamic_fake_quantize,
    fake_quantize,
    lsq_gradient_scale,
    symmetric_levels,
    symmetric_parts,
    symmetric_scale,
    unsigned_levels,
)

SEEDS = st.integers(0, 2**31 - 1)
BITS = st.integers(2, 8)


def affine(x: np.ndarray, scale: np.ndarray, zero: float, low: int, high: int) -> np.ndarray:
    return (np.clip(np.rint(x / scale) + zero, low, high) - zero) * scale


def runtime(operators: list, feeds: dict, output: str) -> np.ndarray:
    types = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.uint8): TensorProto.UINT8}
    inputs = [helper.make_tensor_value_info(name, types[each.dtype], each.shape) for name, each in feeds.items()]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    opset = [helper.make_opsetid("", 20)]
    proto = helper.make_model(helper.make_graph(operators, "g", inputs, outputs), opset_imports=opset, ir_version=9)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([output], feeds)[0]


@given(SEEDS, BITS)
def test_affine_is_the_definition(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    x, scale = rng.normal(size=(5, 7)) * 3, rng.uniform(0.01, 1)
    low, high = unsigned_levels(bits)
    zero = int(rng.integers(low, high + 1))
    found = fake_quantize(torch.tensor(x), torch.tensor(scale, dtype=torch.float64), zero, low=low, high=high)
    np.testing.assert_allclose(found.numpy(), affine(x, scale, zero, low, high), atol=1e-12)


@given(SEEDS, BITS)
def test_symmetric_per_channel_lies_on_its_grid_within_half_a_step(seed: int, bits: int) -> None:
    weight = torch.tensor(np.random.default_rng(seed).normal(size=(4, 3, 2, 2)))
    low, high = symmetric_levels(bits)
    scale = symmetric_scale(weight, bits).view(-1, 1, 1, 1)
    found = fake_quantize(weight, scale, low=low, high=high)
    steps = found / scale
    assert torch.allclose(steps, steps.round(), atol=1e-9)
    assert steps.abs().max() <= high + 1e-9
    assert bool(((found - weight).abs() <= scale / 2 + 1e-9).all())
    assert torch.allclose(fake_quantize(found, scale, low=low, high=high), found)


def test_rounding_is_that_of_onnx() -> None:
    x = np.concatenate([np.arange(-300, 300) * 0.25, np.random.default_rng(0).normal(size=4000) * 30]).astype("float32")
    scale, zero = np.float32(0.5), np.uint8(100)
    parameters = {"s": np.array(scale), "z": np.array(zero)}
    operators = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    expected = runtime(operators, {"x": x, **parameters}, "y")
    found = fake_quantize(torch.tensor(x), torch.tensor(scale), float(zero), low=0, high=255)
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("shift", [0.0, 5.0, -5.0])
def test_dynamic_is_that_of_onnx(shift: float) -> None:
    x = (np.random.default_rng(1).normal(size=(16, 33)) + shift).astype("float32")
    operators = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    found = dynamic_fake_quantize(torch.tensor(x, requires_grad=True))
    np.testing.assert_allclose(found.detach().numpy(), runtime(operators, {"x": x}, "y"), atol=1e-6)


def test_dynamic_gradient_is_straight_through() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    weight = torch.randn(3, 4)
    (dynamic_fake_quantize(x) * weight).sum().backward()
    assert torch.equal(x.grad, weight)
    assert torch.equal(dynamic_fake_quantize(torch.zeros(3)), torch.zeros(3))


def lsq_gradients(v: float, scale: float, low: int, high: int) -> tuple[float, float]:
    """Of one number, to itself and to the scale: Esser et al. 2020, equations 3 and 5; to itself the ends included."""
    q = v / scale
    passes = float(low <= np.rint(q) <= high)
    if q <= low:
        return passes, float(low)
    if q >= high:
        return passes, float(high)
    return passes, float(np.rint(q) - q)


@given(SEEDS, BITS)
def test_the_largest_weight_of_each_channel_learns(seed: int, bits: int) -> None:
    weight = torch.tensor(np.random.default_rng(seed).normal(size=(8, 5)), dtype=torch.float32, requires_grad=True)
    low, high = symmetric_levels(bits)
    scale = symmetric_scale(weight, bits).view(-1, 1)
    outer = torch.arange(1.0, 41.0).view(8, 5)
    (fake_quantize(weight, scale, low=low, high=high) * outer).sum().backward()
    assert torch.equal(weight.grad, outer)
    theirs = weight.detach().clone().requires_grad_()
    zero = torch.zeros(8, dtype=torch.int32)
    (torch.fake_quantize_per_channel_affine(theirs, scale.flatten(), zero, 0, low, high) * outer).sum().backward()
    assert torch.equal(weight.grad, theirs.grad)


@given(SEEDS, BITS, st.booleans())
def test_gradients_are_those_of_lsq(seed: int, bits: int, per_channel: bool) -> None:
    rng = np.random.default_rng(seed)
    x, outer = rng.normal(size=(3, 5)) * 2, rng.normal(size=(3, 5))
    low, high = symmetric_levels(bits)
    scale = rng.uniform(0.05, 1.0, size=(3, 1) if per_channel else (1, 1))
    factor = lsq_gradient_scale(5 if per_channel else 15, high)
    assert factor == pytest.approx(1 / np.sqrt((5 if per_channel else 15) * high))
    wide = np.broadcast_to(scale, x.shape)
    pairs = np.array([[lsq_gradients(x[i, j], wide[i, j], low, high) for j in range(5)] for i in range(3)])
    to_scale = outer * pairs[..., 1] * factor
    expected = to_scale.sum(1, keepdims=True) if per_channel else to_scale.sum(keepdims=True)

    inputs, step = torch.tensor(x, requires_grad=True), torch.tensor(scale, requires_grad=True)
    out = fake_quantize(inputs, step, low=low, high=high, gradient_scale=factor)
    (out * torch.tensor(outer)).sum().backward()
    np.testing.assert_allclose(inputs.grad.numpy(), outer * pairs[..., 0], atol=1e-12)
    np.testing.assert_allclose(step.grad.numpy(), expected, atol=1e-9)


def test_gradient_beyond_an_affine_range_is_that_of_the_bounds() -> None:
    x = torch.tensor([-9.0, 0.0, 9.0], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    fake_quantize(x, scale, 5.0, low=0, high=15).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 0.0]
    assert scale.grad.item() == (0 - 5) + 0 + (15 - 5)


@given(SEEDS, BITS)
def test_affine_scale_holds_zero_and_both_ends(seed: int, bits: int) -> None:
    least, largest = sorted(np.random.default_rng(seed).normal(size=2) * 10)
    low, high = unsigned_levels(bits)
    scale, zero = affine_scale(torch.tensor(least), torch.tensor(largest), low, high)
    assert zero == zero.round()
    assert low <= zero <= high
    assert fake_quantize(torch.zeros(()).double(), scale, zero, low=low, high=high) == 0
    for end in (min(least, 0.0), max(largest, 0.0)):
        near = fake_quantize(torch.tensor(end), scale, zero, low=low, high=high)
        assert abs(near.item() - end) <= scale.item() * 0.5001 + 1e-9


def test_mse_finds_a_range_nearer_the_values_than_min_max() -> None:
    values = torch.cat([torch.randn(4000, generator=torch.Generator().manual_seed(0)).abs(), torch.tensor([40.0])])

    def error(observer: str) -> float:
        scale, zero = affine_range(values, values.min(), values.max(), 4, observer)
        return (fake_quantize(values, scale, zero, low=0, high=15) - values).square().mean().item()

    assert error("mse") < 0.7 * error("min_max")


def test_mse_of_weights_is_best_of_the_candidates_in_each_channel() -> None:
    weight = np.random.default_rng(3).standard_t(2, size=(3, 50))
    parts = symmetric_parts(torch.tensor(weight), 3, "mse")
    for row, part in zip(weight, parts.tolist()):
        errors = {}
        for k in range(1, 41):
            scale = k / 40 * np.abs(row).max() / 3
            errors[k] = float(((affine(row, scale, 0, -3, 3) - row) ** 2).sum())
        assert errors[round(part * 40)] == pytest.approx(min(errors.values()))
    assert symmetric_parts(torch.tensor(weight), 3, "min_max").tolist() == [1, 1, 1]


def test_a_channel_of_zeros_has_the_scale_of_the_largest() -> None:
    assert symmetric_scale(torch.tensor([[0.0, 0.0], [0.0, 127.0]]), 8).tolist() == [1, 1]
    assert bool((symmetric_scale(torch.zeros(2, 2), 8) > 0).all())


@pytest.mark.parametrize(("code", "slope"), [(-7.0, -7.0), (7.0, 7.0), (6.75, 0.25), (-6.75, -0.25), (7.25, 7.0)])
def test_the_gradient_to_the_scale_is_the_end_from_the_end_on(code: float, slope: float) -> None:
    """Between the ends round(v) - v, at an end and beyond it the end itself."""
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([code * 0.5], dtype=torch.float64)
    fake_quantize(x, scale, low=-7, high=7).sum().backward()
    assert scale.grad.item() == slope
