"""A small net of inverted residuals for small images."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from decoct.memory import MOST_STAGES, Depth, Width
from decoct.models.base import Interface, Model
from decoct.models.checks import require_kind


class SmallMobileNet(Model):
    """Inverted residuals for images of 16 to 64 pixels: 24,000 parameters as it stands.

    `width`: channels of the first stage, doubled by each further one; `depths`: blocks in each stage; `expansion` of
    channels inside a block; `stem_stride`: 2 halves the image at once; `activation`: relu or relu6 (both fuse into
    int8 kernels). Feature paths: `stem`, `layer1`, `layer2`, `layer3`, `head`. Sandler et al. 2018 (MobileNetV2).
    """

    use: ClassVar[str] = "small_mobilenet"
    becomes_onnx: ClassVar[bool] = True
    width: Width = 16
    depths: tuple[Depth, ...] = Field(default=(1, 2, 1), min_length=1, max_length=MOST_STAGES)
    expansion: Depth = 3
    stem_stride: Literal[1, 2] = 2
    activation: Literal["relu", "relu6"] = "relu"

    def build(self, interface: Interface, *, pretrained: bool = True) -> nn.Module:
        require_kind(interface, self.use, "image")
        net = SmallMobileNetNet(self, interface.shape[0], interface.width)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        return net


class SmallMobileNetNet(nn.Module):
    """`[B, C, H, W]` -> logits `[B, outputs]`."""

    def __init__(self, spec: SmallMobileNet, channels: int, outputs: int) -> None:
        super().__init__()
        relu = nn.ReLU if spec.activation == "relu" else nn.ReLU6
        self.stem = _convolution(channels, spec.width, 3, spec.stem_stride, 1, relu)
        self.stages = tuple(f"layer{i + 1}" for i in range(len(spec.depths)))
        inputs = spec.width
        for i, (name, depth) in enumerate(zip(self.stages, spec.depths)):
            outs = spec.width * 2**i
            strides = [1 if i == 0 else 2] + [1] * (depth - 1)
            widths = [inputs] + [outs] * (depth - 1)
            blocks = [InvertedResidual(w, outs, s, spec.expansion, relu) for w, s in zip(widths, strides)]
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


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection without activation; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, relu: type[nn.Module]) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = _convolution(inputs, inner, 1, 1, 1, relu)
        self.depthwise = _convolution(inner, inner, 3, stride, inner, relu)
        self.project = _convolution(inner, outputs, 1, 1, 1, None)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int, groups: int, relu: type[nn.Module] | None
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    parts: list[nn.Module] = [conv, nn.BatchNorm2d(outputs)]
    return nn.Sequential(*parts, *([relu()] if relu else []))
