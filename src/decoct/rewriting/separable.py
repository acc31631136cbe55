"""Separable: convolutions as a depthwise and a pointwise one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from decoct.rewriting._factors import RIDGE, like_convolution, set_weight
from decoct.rewriting._layers import Kept, Rewritten, chosen, put_in_place, tied
from decoct.rewriting._watching import rows, watch
from decoct.training.compression import Compressed, Evidence, Scheme


class Separable(Scheme):
    """k x k convolutions become a depthwise k x k convolution and a pointwise 1 x 1 one.

    `rank`: depthwise filters for each input channel. They are the first right singular vectors of the kernel of that
    channel, `[out, k * k]`, which makes the squared error of the kernel least. `weighted`: the pointwise part is then
    fitted to what the layer gave on training data, by least squares. Bias, stride, padding and dilation stay.
    Convolutions of fewer than `min_channels` inputs, in groups, of 1 x 1, or that would not get cheaper stay. `layers`:
    paths of the convolutions, `*` for any part.

    Howard et al. 2017, arXiv 1704.04861 (the form); Guo et al. 2018, arXiv 1803.10127 (from a kernel by SVD).
    """

    use: ClassVar[str] = "separable"
    rank: int = Field(default=1, ge=1)
    weighted: bool = False
    min_channels: int = Field(default=8, ge=1)
    layers: tuple[str, ...] = Field(default=("*",), min_length=1)

    def apply(self, module: nn.Module, evidence: Evidence) -> Compressed:
        layers, safe = chosen(module, self.layers, self.protect)
        shared = tied(module)
        found: dict[str, Rewritten | Kept] = {}
        made: dict[str, nn.Sequential] = {}
        for path, layer in layers:
            if not isinstance(layer, nn.Conv2d):
                continue
            why = self._why_not(layer)
            if path in safe:
                why = "protected"
            elif any(id(each) in shared for each in layer.parameters()):
                why = "its weight is shared with another module"
            found[path] = Kept(layer.weight.numel(), why)
            if not why:
                made[path], kept = separated(layer, self.rank)
                note = f"rank {self.rank} of {_full(layer)}; keeps {kept:.4f} of the energy of its weights"
                found[path] = Rewritten(made[path], layer.weight.numel(), _weights(layer, self.rank), note)
        if self.weighted and made:
            self._fit(module, evidence, made)
        return put_in_place(self, module, found, "weights", evidence)

    def _why_not(self, layer: nn.Conv2d) -> str:
        if type(layer) is not nn.Conv2d:
            return f"it is a {type(layer).__name__}, no plain convolution of torch.nn"
        if layer.groups > 1:
            return f"it works in {layer.groups} groups of channels"
        if layer.kernel_size == (1, 1):
            return "its kernel is 1 x 1"
        if layer.in_channels < self.min_channels:
            return f"it has {layer.in_channels} input channels, min_channels is {self.min_channels}"
        if self.rank > _full(layer):
            return f"rank is {self.rank}, its kernels have {_full(layer)} at most"
        if _weights(layer, self.rank) >= layer.weight.numel():
            return (
                f"at rank {self.rank} it would take {_weights(layer, self.rank)} weights, it has {layer.weight.numel()}"
            )
        return ""

    def _fit(self, module: nn.Module, evidence: Evidence, made: Mapping[str, nn.Sequential]) -> None:
        """The pointwise part of each by ridge regression, drawn towards the one that the kernel gave."""
        sums: dict[str, tuple[Tensor, Tensor]] = {}

        def take(path: str, features: Mapping[str, Tensor]) -> None:
            depthwise, pointwise = made[path].children()
            between = rows(depthwise(features[f"{path}@input"]), channel=1)
            given = rows(features[path], channel=1)
            bias = pointwise._parameters["bias"]
            given = given if bias is None else given - bias.detach().cpu().double()
            missing = given - between @ _flat(pointwise).T
            old = sums.get(path, (torch.zeros((), dtype=torch.float64),) * 2)
            sums[path] = (old[0] + between.T @ between, old[1] + between.T @ missing)

        watch(module, evidence, list(made), take, inputs=True)
        for path, (square, cross) in sums.items():
            ridge = (RIDGE * square.diagonal().mean()).clamp(min=1e-12) * torch.eye(len(square), dtype=square.dtype)
            pointwise = made[path][1]
            change = torch.linalg.solve(square + ridge, cross).T
            set_weight(pointwise, (_flat(pointwise) + change)[:, :, None, None], None)


def separated(layer: nn.Conv2d, rank: int) -> tuple[nn.Sequential, float]:
    """Depthwise and pointwise convolution of least squared error to a kernel, and the share of its energy they keep.

    >>> both, kept = separated(nn.Conv2d(4, 16, 3, bias=False), 9)
    >>> [tuple(each.weight.shape) for each in both], round(kept, 6)
    ([(36, 1, 3, 3), (16, 36, 1, 1)], 1.0)
    """
    kernel = layer.weight.detach().cpu().double().flatten(2).transpose(0, 1)
    left, values, right = torch.linalg.svd(kernel, full_matrices=False)
    even = values[:, :rank].sqrt()
    filters = even[:, :, None] * right[:, :rank]
    mixing = left[:, :, :rank] * even[:, None, :]
    inputs, outputs = layer.in_channels, layer.out_channels
    size = layer.kernel_size
    depthwise = like_convolution(layer, inputs, inputs * rank, kernel=size, bias=False, groups=inputs)
    pointwise = nn.Conv2d(inputs * rank, outputs, 1, bias=layer.bias is not None)
    both = nn.Sequential(depthwise, pointwise).to(layer.weight.device, layer.weight.dtype)
    set_weight(both[0], filters.reshape(inputs * rank, 1, *size), None)
    set_weight(both[1], mixing.transpose(0, 1).reshape(outputs, inputs * rank, 1, 1), layer.bias)
    energies = values.square()
    return both, float(energies[:, :rank].sum() / energies.sum().clamp(min=1e-300))


def _full(layer: nn.Conv2d) -> int:
    return min(layer.out_channels, layer.kernel_size[0] * layer.kernel_size[1])


def _weights(layer: nn.Conv2d, rank: int) -> int:
    return layer.in_channels * rank * (layer.kernel_size[0] * layer.kernel_size[1] + layer.out_channels)


def _flat(pointwise: nn.Module) -> Tensor:
    return pointwise.get_parameter("weight").detach().cpu().double().flatten(1)
