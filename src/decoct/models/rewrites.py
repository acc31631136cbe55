"""Rewrites: changes of a network's forward code that can be done again from a few settings.

Deltas (structure.py) write down what can be read off modules. Where the code itself changes, the network carries the
settings of its rewrite and the structure it had before; both go into model.json, and rebuilding does it again.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from decoct.errors import RecipeError
from decoct.spec import Catalogue, Spec

REWRITES = Catalogue("rewrite", {"fake_quantizers": "decoct.quantization.aware.insertion:FakeQuantizers"})
"""By the `use` of a stage in model.json; no setting of a recipe."""


class Rewriting(Spec):
    """A deterministic change of a network's forward code."""

    @abstractmethod
    def apply(self, module: nn.Module) -> nn.Module:
        """The rewritten network, from a copy; the same names and shapes for the same structure, whatever its weights.

        It carries `Rewritten`, so that it can be saved.
        """


class Scaffold(nn.Module):
    """A module whose own parameters serve training alone: files have none of them, and counts leave them out."""


@dataclass(frozen=True)
class Rewritten:
    """What a rewritten network was made with, and the structure it was made from, without numbers."""

    rewrite: Rewriting
    origin: nn.Module


MARK = "rewritten"


def mark(module: nn.Module, rewrite: Rewriting, origin: nn.Module) -> nn.Module:
    """`module`, carrying the rewrite that made it from `origin`."""
    setattr(module, MARK, Rewritten(rewrite, skeleton(origin)))
    return module


def rewritten(module: nn.Module) -> Rewritten | None:
    """What a rewritten network carries; None for any other."""
    found = vars(module).get(MARK)
    return found if isinstance(found, Rewritten) else None


def skeleton(module: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have shapes and sharing, and take no memory."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        blank: torch.Tensor = torch.empty_like(tensor, device="meta")
        if isinstance(tensor, nn.Parameter):
            blank = nn.Parameter(blank, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = blank
    return copy.deepcopy(module, memo)


def parse(stage: Mapping[str, Any], source: str) -> Rewriting:
    """The rewrite of a stage of model.json; RecipeError for one that this version lacks."""
    use = stage["use"]
    if use not in REWRITES:
        raise RecipeError(f"{source}: its structure needs {use!r}, which this version of decoct lacks")
    found = REWRITES.resolve(use).parse({name: value for name, value in stage.items() if name != "use"})
    assert isinstance(found, Rewriting)
    return found
