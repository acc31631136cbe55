"""A small residual net for small images."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from decoct.memory import MOST_STAGES, Depth, Width
from decoct.models.base import Interface, Model
from decoct.models.checks import require_kind


class SmallResNet(Model):
    """A residual net for images of 8 to 64 pixels, ReLU throughout.

    `width`: channels of the first stage, doubled by each further one; `depths`: residual blocks in each stage;
    `stem_stride`: 2 halves the image at once (four times faster, less exact).
    Feature paths: `stem`, `layer1`, `layer2`, `layer3`, `head`. He et al. 2016 (section 4.2, with projections).
    """

    use: ClassVar[str] = "small_resnet"
    becomes_onnx: ClassVar[bool] = True
    width: Width = 32
    depths: tuple[Depth, ...] = Field(default=(1, 1, 1), min_length=1, max_length=MOST_STAGES)
    stem_stride: Literal[1, 2] = 1

    def build(self, interface: Interface, *, pretrained: bool = True) -> nn.Module:
        require_kind(interface, self.use, "image")
        net = SmallResNetNet(interface.shape[0], interface.width, self.width, self.depths, self.stem_stride)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        return net


class SmallResNetNet(nn.Module):
    """`[B, C, H, W]` -> logits `[B, outputs]`."""

    def __init__(self, channels: int, outputs: int, width: int, depths: tuple[int, ...], stem_stride: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.stages = tuple(f"layer{i + 1}" for i in range(len(depths)))
        inputs = width
        for i, (name, depth) in enumerate(zip(self.stages, depths)):
            outs = width * 2**i
            strides = [1 if i == 0 else 2] + [1] * (depth - 1)
            blocks = [Block(inputs if j == 0 else outs, outs, stride) for j, stride in enumerate(strides)]
            self.add_module(name, nn.Sequential(*blocks))
            inputs = outs
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for name in self.stages:
            x = self.get_submodule(name)(x)
        logits: Tensor = self.head(self.pool(x).flatten(1))
        return logits


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, 1x1 where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu2(y + self.shortcut(x))
        return out
