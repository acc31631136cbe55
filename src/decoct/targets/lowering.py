"""Modules that are written to a file as other operators than those that torch runs."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn


class InOnnx(ABC):
    """A module with a form of its own in ONNX, such as a fake quantizer, which there is a real one."""

    @abstractmethod
    def in_onnx(self) -> nn.Module:
        """The module that stands for this one while the program is traced; it cannot run eagerly."""


def with_onnx_forms(program: nn.Module) -> nn.Module:
    """Replaces, in place, each module of a program that has a form of its own in ONNX."""
    made: dict[int, nn.Module] = {}

    def visit(module: nn.Module) -> None:
        for name, child in module._modules.items():
            if isinstance(child, InOnnx):
                if id(child) not in made:
                    made[id(child)] = child.in_onnx()
                module._modules[name] = made[id(child)]
            elif child is not None:
                visit(child)

    visit(program)
    return program


def has_onnx_forms(program: nn.Module) -> bool:
    """Whether the file of a program computes otherwise than torch does, so that the two agree only nearly."""
    return any(isinstance(each, InOnnx) for each in program.modules())
