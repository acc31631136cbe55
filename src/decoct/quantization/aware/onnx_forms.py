"""Fake quantizers as ONNX's own operators; they cannot run eagerly."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decoct.quantization.fake import unsigned_levels


def apply_layer(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution or linear layer with another weight and bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d), type(layer)
    return layer._conv_forward(x, weight, bias)


class OnnxActivation(nn.Module):
    """QuantizeLinear and DequantizeLinear in uint8; below 8 bits a Clip first, for ONNX rounds to 256 steps."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor, bits: int) -> None:
        super().__init__()
        low, high = (float((each - zero_point) * scale) for each in unsigned_levels(bits))
        self.bounds = None if bits == 8 else (low, high)
        self.register_buffer("scale", scale.clone())
        self.register_buffer("zero_point", zero_point.to(torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        if self.bounds is not None:
            x = x.clamp(*self.bounds)
        parameters = [self.scale, self.zero_point]
        integers = _operator("QuantizeLinear", [x, *parameters], torch.uint8, x.shape)
        return _operator("DequantizeLinear", [integers, *parameters], x.dtype, x.shape)


class OnnxLayer(nn.Module):
    """A layer whose weight is stored as int8, `scale` `[C]` for axis 0, and the bias as int32 with `bias_scale`."""

    integers: Tensor
    scale: Tensor
    zero_point: Tensor
    bias_scale: Tensor | None
    bias: Tensor

    def __init__(self, layer: nn.Module, integers: Tensor, scale: Tensor, *, bias_scale: Tensor | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("integers", integers)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.zeros_like(scale, dtype=torch.int8))
        self.register_buffer("bias_scale", bias_scale)
        bias = layer._parameters["bias"]
        if bias_scale is not None and bias is not None:
            self.register_buffer("bias", (bias.detach() / bias_scale).round().to(torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.integers, self.scale, self.zero_point]
        weight = _operator("DequantizeLinear", parts, x.dtype, self.integers.shape, axis=0)
        bias: Tensor | None = self.layer._parameters["bias"]
        if self.bias_scale is not None:
            bias = _operator("DequantizeLinear", [self.bias, self.bias_scale], x.dtype, self.bias.shape, axis=0)
        return apply_layer(self.layer, x, weight, bias)


class OnnxDynamicLinear(nn.Module):
    """DynamicQuantizeLinear and MatMulInteger; `integers` `[out, in]`, `scale` `[out]`."""

    integers: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, integers: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("integers", integers.t().contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.zeros_like(scale, dtype=torch.int8))
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        kinds, shapes = [torch.uint8, x.dtype, torch.uint8], [x.shape, (), ()]
        found = torch.onnx.ops.symbolic_multi_out("DynamicQuantizeLinear", [x], dtypes=kinds, shapes=shapes)
        quantized, scale, zero = found
        shape = (*x.shape[:-1], self.integers.shape[1])
        product = _operator("MatMulInteger", [quantized, self.integers, zero, self.zero_point], torch.int32, shape)
        out = product.to(x.dtype) * (scale * self.scale)
        return out if self.bias is None else out + self.bias


def _operator(name: str, inputs: list[Tensor], dtype: torch.dtype, shape: Any, **attributes: int) -> Tensor:
    return torch.onnx.ops.symbolic(name, inputs, {**attributes}, dtype=dtype, shape=shape)
