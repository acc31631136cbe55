"""Parameters: with how many numbers a module computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from decoct.models.clustered import Clustered
from decoct.models.rewrites import Scaffold


@dataclass(frozen=True)
class Parameters:
    """Counts of numbers; one that is shared counts once. `nonzero` are those that are not 0."""

    total: int
    trainable: int
    nonzero: int


def parameters(module: nn.Module) -> Parameters:
    """The parameters of a module, buffers left out; of a layer with a codebook its weights, each index one.

    What a codebook saves is bytes: the network computes with as many weights as before. `trainable` are the numbers
    that learn, the centroids of a codebook alone. Learned scales of fake quantizers, which no file has, do not count.

    >>> parameters(nn.Linear(3, 4)).total
    16
    """
    scales = _scales(module)
    found = [each for each in module.parameters() if id(each) not in scales]
    weights = list(_weights(module))
    return Parameters(
        sum(each.numel() for each in weights),
        sum(each.numel() for each in found if each.requires_grad),
        int(sum(torch.count_nonzero(each) for each in weights)),
    )


def _weights(module: nn.Module) -> Iterator[Tensor]:
    """Every tensor that layers compute with, once."""
    seen: set[int] = set()
    apart = _scales(module)
    for each in module.modules():
        if isinstance(each, Clustered):
            apart.add(id(each.centroids))
            if id(each.index) not in seen:
                seen.add(id(each.index))
                yield each.weight.detach()
    yield from (each for each in module.parameters() if id(each) not in apart)


def _scales(module: nn.Module) -> set[int]:
    """The parameters, by identity, that serve training alone."""
    return {id(p) for each in module.modules() if isinstance(each, Scaffold) for p in each._parameters.values()}
