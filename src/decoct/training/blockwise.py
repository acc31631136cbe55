"""Blockwise: each block of a student fitted to what the same block of another network gives, all at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from decoct.outputs import Batch, Predictor
from decoct.training.clock import Clock
from decoct.training.engine import Engine
from decoct.training.schedules import Schedule
from decoct.training.updates import Items, Losses, Windowed


@dataclass(frozen=True)
class Block:
    """A part of the student, and the features of the reference that it is fed and that it is to give.

    `scale`: the mean square of what it is to give, in which its error is measured.
    """

    module: nn.Module
    takes: str
    gives: str
    scale: float = 1.0

    def error(self, features: Mapping[str, Tensor]) -> Tensor:
        """Mean squared error over `scale`: 0 for a block that gives what it should, about 1 for one that gives 0."""
        said = first_tensor(self.module(features[self.takes].clone()))
        return (said.float() - features[self.gives].float()).square().mean() / self.scale


class Blockwise(Windowed):
    """Every block is fed what the reference's block took, and learns to give what that gave.

    `reference` answers with the features that the blocks name, without gradient, so each block learns alone and all of
    them in one step; the loss is the sum of their errors. The optimizer has the parameters of the blocks.

    Like the layer-wise step of block-wise distillation (Li et al. 2020, arXiv 1911.13053), in parallel.
    """

    def __init__(
        self,
        reference: Predictor,
        blocks: Mapping[str, Block],
        optimizer: torch.optim.Optimizer,
        engine: Engine | None = None,
        *,
        max_grad_norm: float | None = None,
        lr: float | Schedule | None = None,
    ) -> None:
        super().__init__(optimizer, engine, max_grad_norm=max_grad_norm, lr=lr)
        self.reference = reference
        self.blocks = {f"blocks.{name}": block for name, block in blocks.items()}

    @property
    def splittable(self) -> bool:
        return True

    def items(self, batch: Batch) -> Items:
        return dict.fromkeys(self.blocks, len(batch))

    def weights(self, clock: Clock) -> dict[str, float]:
        return dict.fromkeys(self.blocks, 1.0)

    def losses(self, batch: Batch, clock: Clock, shares: Mapping[str, Tensor | float] | None) -> Losses:
        features = self.reference(batch).features
        with self.engine.autocast():
            terms = {name: block.error(features) for name, block in self.blocks.items()}
        parts = [term if shares is None else term * shares[name] for name, term in terms.items()]
        return torch.stack(parts).sum(), {name: term.detach() for name, term in terms.items()}, {}


def first_tensor(value: Tensor | tuple[Tensor, ...]) -> Tensor:
    """What a module gave, or the first item where it gave several."""
    return value if isinstance(value, Tensor) else value[0]
