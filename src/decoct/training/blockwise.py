"""Blockwise: each block of a student fitted to what the same block of another network gives, all at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from decoct.capture import Call
from decoct.data.parts import Padding
from decoct.outputs import Batch
from decoct.training.clock import Clock
from decoct.training.engine import Engine
from decoct.training.schedules import Schedule
from decoct.training.updates import Items, Losses, Windowed

Calls = Mapping[str, Call]
"""What each block of the reference took and gave on one batch, by path."""


@dataclass(frozen=True)
class Block:
    """A part of the student that is to do what the reference's does.

    `scale`: the mean square of what it is to give, in which its error is measured.
    """

    module: nn.Module
    scale: float = 1.0

    def error(self, call: Call) -> Tensor:
        """Mean squared error over `scale`: 0 for a block that gives what it should, about 1 for one that gives 0."""
        produced, wanted = (first_tensor(each) for each in (self.module(*call.args, **call.kwargs), call.output))
        return (produced.float() - wanted.float()).square().mean() / self.scale


class Blockwise(Windowed):
    """Every block is given what the reference's block took, and learns to give what that gave.

    `reference` records the calls of its blocks, without gradient, so each block learns alone and all of them in one
    step; the loss is the sum of their errors. The optimizer has the parameters of the blocks.

    Like the layer-wise step of block-wise distillation (Li et al. 2020, arXiv 1911.13053), in parallel.
    """

    def __init__(
        self,
        reference: Callable[[Batch], Calls],
        blocks: Mapping[str, Block],
        optimizer: torch.optim.Optimizer,
        engine: Engine | None = None,
        *,
        max_grad_norm: float | None = None,
        lr: float | Schedule | None = None,
    ) -> None:
        super().__init__(optimizer, engine, max_grad_norm=max_grad_norm, lr=lr)
        self.reference, self.blocks = reference, blocks

    @property
    def splittable(self) -> bool:
        return True

    def items(self, batch: Batch) -> Items:
        return dict.fromkeys(map(_term, self.blocks), 0 if isinstance(batch, Padding) else len(batch))

    def weights(self, clock: Clock) -> dict[str, float]:
        return dict.fromkeys(map(_term, self.blocks), 1.0)

    def losses(self, batch: Batch, clock: Clock, shares: Mapping[str, Tensor | float] | None) -> Losses:
        calls = self.reference(batch)
        with self.engine.autocast():
            terms = {_term(path): block.error(calls[path]) for path, block in self.blocks.items()}
        parts = [term if shares is None else term * shares[name] for name, term in terms.items()]
        return torch.stack(parts).sum(), {name: term.detach() for name, term in terms.items()}, {}


def first_tensor(value: Any) -> Tensor:
    """What a module gave, or the first item where it gave several; TypeError where that is no tensor."""
    found = value[0] if isinstance(value, tuple | list) and value else value
    if not isinstance(found, Tensor):
        raise TypeError(f"it gives a {type(value).__name__}, no tensor first")
    return found


def _term(path: str) -> str:
    return f"blocks.{path}"
