"""MLP: fully connected layers, for tables and flattened images."""

from __future__ import annotations

import itertools
import math
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from decoct.memory import Width
from decoct.models.base import Interface, Model
from decoct.models.checks import require_kind


class MLP(Model):
    """Fully connected layers with ReLU; images are flattened.

    `hidden`: width of each hidden layer (none: a linear model); `dropout` after each of them.
    Feature paths: `hidden.0`, `hidden.1`, ..., `head`.
    """

    use: ClassVar[str] = "mlp"
    becomes_onnx: ClassVar[bool] = True
    hidden: tuple[Width, ...] = Field(default=(128, 64), max_length=1024)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    def build(self, interface: Interface, *, pretrained: bool = True) -> nn.Module:
        require_kind(interface, self.use, "tabular", "image")
        return MLPNet(math.prod(interface.shape), self.hidden, interface.width, self.dropout)


class MLPNet(nn.Module):
    """`[B, ...]` flattened to `[B, F]` -> logits `[B, outputs]`."""

    def __init__(self, features: int, hidden: tuple[int, ...], outputs: int, dropout: float) -> None:
        super().__init__()
        widths = (features, *hidden)
        self.hidden = nn.Sequential(*(_layer(a, b, dropout) for a, b in itertools.pairwise(widths)))
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.hidden(x.flatten(1)))
        return logits


def _layer(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    parts: list[nn.Module] = [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*parts, *([nn.Dropout(dropout)] if dropout else []))
