"""Fake quantization: numbers rounded to the grid of an integer type while they stay floating point."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from decoct.training.synchronised import whole_range

Observer = Literal["min_max", "mse"]
SHRINKAGE = 40
"""Candidate ranges of the mse observer: this many parts of the full range."""


def unsigned_levels(bits: int) -> tuple[int, int]:
    """Least and largest integer of an affine grid.

    >>> unsigned_levels(8)
    (0, 255)
    """
    return 0, 2**bits - 1


def symmetric_levels(bits: int) -> tuple[int, int]:
    """Least and largest integer of a grid that is symmetric around zero; the least of the type is left out.

    >>> symmetric_levels(4)
    (-7, 7)
    """
    return 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | float = 0.0,
    *,
    low: int,
    high: int,
    gradient_scale: float = 1.0,
) -> Tensor:
    """`scale * (clip(round(x / scale) + zero_point, low, high) - zero_point)`, in the shape of `x`.

    `scale` and `zero_point` (integers in floating point) broadcast over `x`: `[]` per tensor, `[C, 1, 1, 1]` per
    channel. Halves round to even, as ONNX rounds. Gradient to `x`: straight through where `round(v)`, `v = x / scale`,
    lies on the grid, its ends included, so that the largest weight of a channel learns too; zero elsewhere.
    Gradient to `scale`: `round(v) - v` where `v` is between the ends, else the end, times `gradient_scale`.
    Bengio et al. 2013 (straight-through estimator); Esser et al. 2020 (LSQ), equations 3 and 5.

    >>> fake_quantize(torch.tensor([-9.0, 0.26, 9.0]), torch.tensor(0.5), low=-7, high=7).tolist()
    [-3.5, 0.5, 3.5]
    """
    zero = torch.as_tensor(zero_point, dtype=scale.dtype, device=scale.device)
    out: Tensor = _FakeQuantize.apply(x, scale, zero, low, high, gradient_scale)
    return out


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int, factor: float) -> Tensor:
        v = x.to(scale.dtype) / scale
        ctx.save_for_backward(v, scale, zero)
        ctx.low, ctx.high, ctx.factor = low, high, factor
        return (((v.round() + zero).clamp(low, high) - zero) * scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        v, scale, zero = ctx.saved_tensors
        low, high = ctx.low - zero, ctx.high - zero
        rounded = v.round()
        to_scale = None
        if ctx.needs_input_grad[1]:
            slope = torch.where((v > low) & (v < high), rounded - v, torch.minimum(torch.maximum(v, low), high))
            to_scale = (gradient * slope).sum_to_size(scale.shape) * ctx.factor
        return gradient * ((rounded >= low) & (rounded <= high)), to_scale, None, None, None, None


def lsq_gradient_scale(count: int, high: int) -> float:
    """`1 / sqrt(count * high)`, what the gradient of a step size over `count` numbers is multiplied by (LSQ, 2.2).

    >>> lsq_gradient_scale(4, 25)
    0.1
    """
    return 1 / math.sqrt(count * high)


def affine_scale(least: Tensor, largest: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the grid over `[least, largest]`, widened to hold zero exactly.

    >>> [each.item() for each in affine_scale(torch.tensor(-1.0), torch.tensor(4.0), 0, 5)]
    [1.0, 1.0]
    """
    least, largest = least.clamp(max=0.0), largest.clamp(min=0.0)
    scale = (largest - least) / (high - low)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return scale, (low - least / scale).round().clamp(low, high)


def dynamic_fake_quantize(x: Tensor) -> Tensor:
    """`x` on the grid of 256 steps over its own range, as ONNX's DynamicQuantizeLinear; gradient straight through.

    In training in several processes the range is that of the whole batch.
    """
    low, high = unsigned_levels(8)
    with torch.no_grad():
        scale, zero = affine_scale(*whole_range(x), low, high)
        grid = ((x / scale).round() + zero).clamp(low, high)
        on_grid = ((grid - zero) * scale).to(x.dtype)
    return x + (on_grid - x).detach() if x.requires_grad else on_grid


def affine_range(
    values: Tensor, least: Tensor, largest: Tensor, bits: int, observer: Observer
) -> tuple[Tensor, Tensor]:
    """Scale and zero point for numbers in `[least, largest]`, of which `values` is a sample.

    min_max: the whole range; mse: that part of it (1/40 to 40/40) whose grid is nearest the values in squared error.
    """
    low, high = unsigned_levels(bits)
    best = affine_scale(least, largest, low, high)
    if observer == "min_max":
        return best
    lowest = math.inf
    for part in torch.linspace(1 / SHRINKAGE, 1, SHRINKAGE).flip(0).tolist():
        scale, zero = affine_scale(least * part, largest * part, low, high)
        error = (fake_quantize(values, scale, zero, low=low, high=high) - values).square().mean().item()
        if error < lowest:
            best, lowest = (scale, zero), error
    return best


def symmetric_parts(weight: Tensor, bits: int, observer: Observer) -> Tensor:
    """Per channel (axis 0) `[C]`, the part of the largest magnitude at which the symmetric grid ends.

    min_max: 1; mse: that part (1/40 to 40/40) with the least squared error.
    """
    rows = weight.detach().flatten(1)
    parts = torch.ones(len(rows), dtype=weight.dtype, device=weight.device)
    if observer == "min_max":
        return parts
    low, high = symmetric_levels(bits)
    lowest = torch.full_like(parts, math.inf)
    for part in torch.linspace(1 / SHRINKAGE, 1, SHRINKAGE).flip(0).tolist():
        scale = part * symmetric_scale(rows, bits).unsqueeze(1)
        error = (fake_quantize(rows, scale, low=low, high=high) - rows).square().sum(1)
        parts = torch.where(error < lowest, torch.full_like(parts, part), parts)
        lowest = torch.minimum(error, lowest)
    return parts


def symmetric_scale(weight: Tensor, bits: int) -> Tensor:
    """Per channel (axis 0) `[C]`, the scale whose grid ends at the largest magnitude.

    A channel of zeros takes the largest scale of the others, for its bias is rounded to a multiple of it.
    """
    _, high = symmetric_levels(bits)
    largest = weight.detach().flatten(1).abs().amax(1)
    top = largest.max()
    return torch.where(largest > 0, largest, torch.where(top > 0, top, torch.ones_like(top))) / high
