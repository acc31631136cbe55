"""Layers and values that are on an integer grid while the network trains."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.models.rewrites import Scaffold
from decoct.quantization.aware.onnx_forms import OnnxActivation, OnnxDynamicLinear, OnnxLayer, apply_layer
from decoct.quantization.fake import (
    Observer,
    affine_range,
    dynamic_fake_quantize,
    fake_quantize,
    lsq_gradient_scale,
    symmetric_levels,
    symmetric_parts,
    symmetric_scale,
    unsigned_levels,
)
from decoct.targets.lowering import InOnnx
from decoct.training.synchronised import TakesRange

LARGEST = 2.0**30
"""Bound of a bias in steps of its grid, well inside int32."""
SAMPLED = 8192
"""Values of one pass that the mse observer looks at."""


@dataclass
class Observed:
    """What an activation quantizer saw while it watched."""

    least: float = math.inf
    largest: float = -math.inf
    values: list[Tensor] = field(default_factory=list)

    def see(self, x: Tensor) -> None:
        flat = x.detach().float().flatten()
        self.least = min(self.least, flat.min().item())
        self.largest = max(self.largest, flat.max().item())
        self.values.append(flat[:: max(1, flat.numel() // SAMPLED)].cpu())


class ActivationQuantizer(Scaffold, InOnnx):
    """A value on an affine grid of unsigned integers, one scale for the tensor.

    `learned`: the scale is trained (in its logarithm, so that a step of Adam is relative; Jain et al. 2020); else it
    stays as observed. `ceiling`: the range never goes beyond it, so that a clip before it can be left out.
    """

    initial: Tensor
    zero_point: Tensor

    def __init__(self, bits: int, *, learned: bool, ceiling: float | None = None) -> None:
        super().__init__()
        self.bits, self.ceiling = bits, ceiling
        self.register_buffer("initial", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros(()))
        self.shift = nn.Parameter(torch.zeros(())) if learned else None
        self.watching: Observed | None = None

    def scale(self) -> Tensor:
        """`[]`, positive."""
        scale = self.initial if self.shift is None else self.initial * self.shift.exp()
        if self.ceiling is None:
            return scale
        steps = unsigned_levels(self.bits)[1] - self.zero_point
        return torch.minimum(scale, self.ceiling * (1 - 1e-6) / steps.clamp(min=1))

    def forward(self, x: Tensor) -> Tensor:
        if self.watching is not None:
            self.watching.see(x)
            return x
        low, high = unsigned_levels(self.bits)
        factor = lsq_gradient_scale(x.numel() // max(len(x), 1), high)
        return fake_quantize(x, self.scale(), self.zero_point, low=low, high=high, gradient_scale=factor)

    def settle(self, path: str, observer: Observer) -> None:
        """Takes the range from what was watched, and watches no more."""
        seen, self.watching = self.watching, None
        if seen is None or not seen.values:
            raise RecipeError(f"{path}: no sample went through this layer; give samples that use every layer")
        if not math.isfinite(seen.largest - seen.least):
            raise RecipeError(f"{path}: values from {seen.least} to {seen.largest}; the model must give finite numbers")
        ends = torch.tensor(seen.least), torch.tensor(seen.largest)
        scale, zero = affine_range(torch.cat(seen.values), *ends, self.bits, observer)
        self.initial.copy_(scale)
        self.zero_point.copy_(zero)

    def in_onnx(self) -> nn.Module:
        return OnnxActivation(self.scale().detach(), self.zero_point, self.bits)


class WeightQuantizer(Scaffold):
    """A weight on a symmetric grid, a scale for each channel of axis 0.

    `learned`: scales are trained (LSQ); else each is a fixed part of the channel's largest magnitude as it is now.
    """

    initial: Tensor

    def __init__(self, channels: int, bits: int, *, learned: bool) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("initial", torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels)) if learned else None

    def scale(self, weight: Tensor) -> Tensor:
        """`[C]`, positive."""
        if self.shift is None:
            return self.initial * symmetric_scale(weight, self.bits)
        return self.initial * self.shift.exp()

    def forward(self, weight: Tensor) -> Tensor:
        low, high = symmetric_levels(self.bits)
        scale = self.scale(weight).view(-1, *[1] * (weight.dim() - 1))
        factor = lsq_gradient_scale(weight[0].numel(), high)
        return fake_quantize(weight, scale, low=low, high=high, gradient_scale=factor)

    @torch.no_grad()
    def settle(self, weight: Tensor, observer: Observer) -> None:
        """Takes the ranges from a weight."""
        parts = symmetric_parts(weight, self.bits, observer)
        self.initial.copy_(parts if self.shift is None else parts * symmetric_scale(weight, self.bits))

    def integers(self, weight: Tensor, least: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        """The weight as int8, and its scales `[C]`, none below `least`."""
        low, high = symmetric_levels(self.bits)
        scale = self.scale(weight).detach().clamp(min=torch.as_tensor(least))
        grid = (weight.detach() / scale.view(-1, *[1] * (weight.dim() - 1))).round().clamp(low, high)
        return grid.to(torch.int8), scale


class QuantizedLayer(nn.Module, InOnnx):
    """A convolution or linear layer with its weight on the grid; its inputs and outputs are quantized beside it.

    `source`: the quantizer of its input, whose scale the integers of the bias need; None where it has several.
    """

    def __init__(
        self, layer: nn.Module, bits: int, *, learned: bool, source: ActivationQuantizer | None = None
    ) -> None:
        super().__init__()
        self.layer = layer
        self.source = (source,)  # in a tuple it is no submodule: the network holds it elsewhere
        self.quantizer = WeightQuantizer(len(self.weight), bits, learned=learned).to(self.weight.device)

    @property
    def weight(self) -> Tensor:
        """The weight in full precision."""
        return self.layer.get_parameter("weight")

    @property
    def bias(self) -> Tensor | None:
        return self.layer._parameters["bias"]

    def forward(self, x: Tensor) -> Tensor:
        return apply_layer(self.layer, x, self.quantizer(self.weight), self._rounded_bias())

    def _rounded_bias(self) -> Tensor | None:
        """The bias on the int32 grid of the file, with the gradient of the bias itself.

        Its step is that of the input times that of the weight, which at 4 bits is coarse enough to move activations.
        """
        source, bias = self.source[0], self.bias
        if source is None or bias is None or source.watching is not None:
            return bias
        with torch.no_grad():
            step = source.scale()
            scale = step * self.quantizer.scale(self.weight).clamp(min=bias.abs() / (step * LARGEST))
            off = (bias / scale).round() * scale - bias
        return bias + off

    def in_onnx(self) -> nn.Module:
        source, bias = self.source[0], self.bias
        if source is None or bias is None:
            return OnnxLayer(self.layer, *self.quantizer.integers(self.weight))
        step = source.scale().detach()
        integers, scale = self.quantizer.integers(self.weight, bias.detach().abs() / (step * LARGEST))
        return OnnxLayer(self.layer, integers, scale, bias_scale=step * scale)


class DynamicLinear(nn.Module, InOnnx, TakesRange):
    """A linear layer with its weight on the grid, and its input on a grid over the range that each batch has."""

    def __init__(self, layer: nn.Linear, bits: int, *, learned: bool) -> None:
        super().__init__()
        self.layer = layer
        self.quantizer = WeightQuantizer(len(layer.weight), bits, learned=learned).to(layer.weight.device)

    @property
    def weight(self) -> Tensor:
        """The weight in full precision."""
        return self.layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(dynamic_fake_quantize(x), self.quantizer(self.layer.weight), self.layer.bias)

    def in_onnx(self) -> nn.Module:
        return OnnxDynamicLinear(*self.quantizer.integers(self.layer.weight), self.layer.bias)


class Tap(nn.Module):
    """What stands at the path of a module that was traced through: gives what that module gave."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class QuantizedNet(nn.Module):
    """A traced network with quantizers between its layers; the modules keep their paths."""

    def __init__(self, code: Callable[..., Any]) -> None:
        super().__init__()
        self.code = code

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.code(self, *args, **kwargs)
