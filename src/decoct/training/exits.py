"""Exits: a network whose exits learn from its own end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from decoct.outputs import Batch, Dense, Outputs
from decoct.training.clock import Clock
from decoct.training.engine import Engine
from decoct.training.mutual import detached, shares_of
from decoct.training.schedules import Schedule
from decoct.training.updates import Criterion, Items, Losses, Windowed

END = "end"


class Exits(Windowed):
    """The end's own loss, and for each exit an objective with the end as its teacher, added up.

    `heads`: by the name of an exit the feature that holds its logits; `forward` captures them; `end` is the end's
    criterion, `criteria` those of the exits. Terms are logged as `EXIT.TERM`, those of the end under their names.
    No gradient reaches the end through what it teaches.
    """

    def __init__(
        self,
        forward: Callable[[Batch], Outputs],
        heads: Mapping[str, str],
        end: Criterion,
        criteria: Mapping[str, Criterion],
        optimizer: torch.optim.Optimizer,
        engine: Engine | None = None,
        *,
        max_grad_norm: float | None = None,
        lr: float | Schedule | None = None,
    ) -> None:
        super().__init__(optimizer, engine, max_grad_norm=max_grad_norm, lr=lr)
        self.forward, self.heads, self.end, self.criteria = forward, heads, end, criteria

    @property
    def splittable(self) -> bool:
        return all(each.splittable for each in (self.end, *self.criteria.values()))

    def items(self, batch: Batch) -> Items:
        own = {f"{exit}.{name}": n for exit, each in self.criteria.items() for name, n in each.items(batch).items()}
        return {**self.end.items(batch), **own}

    def weights(self, clock: Clock) -> dict[str, float]:
        own = {f"{exit}.{name}": w for exit, each in self.criteria.items() for name, w in each.weights(clock).items()}
        return {**self.end.weights(clock), **own}

    def losses(self, batch: Batch, clock: Clock, shares: Mapping[str, Tensor | float] | None) -> Losses:
        with self.engine.autocast():
            outputs = self.forward(batch)
        total, found = self.end(outputs, {}, batch, clock, shares)
        logged = dict(found)
        teacher_outputs = {END: detached(outputs)}
        for exit, criterion in self.criteria.items():
            exit_outputs = at_exit(outputs, self.heads[exit])
            loss, terms = criterion(exit_outputs, teacher_outputs, batch, clock, shares_of(exit, shares))
            total = total + loss
            logged |= {f"{exit}.{name}": term for name, term in terms.items()}
        return total, logged, {}


def at_exit(outputs: Outputs, head: str) -> Outputs:
    """What the exit says whose logits are the feature `head`."""
    return replace(outputs, distribution=Dense(outputs.features[head]))
