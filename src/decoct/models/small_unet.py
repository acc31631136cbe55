"""A small U-Net, which answers at each pixel."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from decoct.memory import MOST_STAGES, Width
from decoct.models.base import Interface, Model
from decoct.models.checks import require_kind


class SmallUNet(Model):
    """A U-Net for maps of classes, ReLU throughout, for images of any size from 2^(stages − 1) pixels.

    `widths`: channels of each stage from the finest to the coarsest, each at half the size of the one before;
    `stem_stride`: 2 halves the image at once, and the map that it gives with it (four times faster, less exact).
    Feature paths: `down1`, `down2`, ..., `up1` (the finest), ..., `head`. Ronneberger et al. 2015, arXiv 1505.04597,
    with batch norm, padded convolutions, and the map enlarged by repeating pixels.
    """

    use: ClassVar[str] = "small_unet"
    becomes_onnx: ClassVar[bool] = True
    widths: tuple[Width, ...] = Field(default=(16, 32, 64), min_length=1, max_length=MOST_STAGES)
    stem_stride: Literal[1, 2] = 1

    def build(self, interface: Interface, *, pretrained: bool = True) -> nn.Module:
        require_kind(interface, self.use, "image", per_pixel=True)
        net = SmallUNetNet(interface.shape[0], interface.width, self.widths, self.stem_stride)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        return net


class SmallUNetNet(nn.Module):
    """`[B, C, H, W]` -> logits `[B, outputs, H / stem_stride, W / stem_stride]`."""

    def __init__(self, channels: int, outputs: int, widths: tuple[int, ...], stem_stride: int) -> None:
        super().__init__()
        self.stages = len(widths)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        for i, (before, width) in enumerate(zip((channels, *widths), widths), 1):
            self.add_module(f"down{i}", Convolutions(before, width, stem_stride if i == 1 else 1))
        for i, (width, below) in enumerate(pairwise(widths), 1):
            self.add_module(f"up{i}", Convolutions(width + below, width))
        self.head = nn.Conv2d(widths[0], outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        finer = []
        for i in range(1, self.stages + 1):
            x = self.get_submodule(f"down{i}")(x if i == 1 else self.pool(x))
            finer.append(x)
        for i in range(self.stages - 1, 0, -1):
            skip = finer[i - 1]
            x = F.interpolate(x, size=skip.shape[-2:], mode="nearest")
            x = self.get_submodule(f"up{i}")(torch.cat([skip, x], dim=1))
        logits: Tensor = self.head(x)
        return logits


class Convolutions(nn.Sequential):
    """Two 3x3 convolutions, each with batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )
