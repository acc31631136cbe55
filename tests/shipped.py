"""Programs of one output as targets take them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from decoct.models.interface import MAIN, Port, Program
from decoct.targets.base import Target

Axes = Mapping[str, Mapping[int, str]]


def one(module: nn.Module, example: Mapping[str, Tensor], axes: Axes, output: str = "logits") -> Program:
    """A program that gives logits under one name."""
    return Program(module, example, axes, {output: Port(kind="logits")})


def written(
    target: Target, module: nn.Module, example: Mapping[str, Tensor], folder: Path, axes: Axes, output: str = "logits"
) -> Path:
    """The file of such a program."""
    return target.write({MAIN: one(module, example, axes, output)}, folder)[MAIN]
