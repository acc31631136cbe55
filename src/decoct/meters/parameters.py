"""Parameters: how many numbers a module has learned."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Parameters:
    """Counts of numbers; one that is shared counts once."""

    total: int
    trainable: int


def parameters(module: nn.Module) -> Parameters:
    """The parameters of a module, buffers left out.

    >>> parameters(nn.Linear(3, 4)).total
    16
    """
    found = list(module.parameters())
    return Parameters(sum(p.numel() for p in found), sum(p.numel() for p in found if p.requires_grad))
