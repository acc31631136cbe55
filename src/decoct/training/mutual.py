"""Mutual: peers that teach each other, each stepping down its own loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from decoct.outputs import Batch, Outputs
from decoct.training.clock import Clock
from decoct.training.engine import Engine
from decoct.training.schedules import Schedule
from decoct.training.updates import Criterion, Items, Losses, Windowed


class Mutual(Windowed):
    """The loss of each peer is the mean, over the others, of the objective with that other as its teacher.

    All peers answer once, in train mode; what one says reaches the others without gradient, so the sum of the losses
    gives each its own gradient. `criteria[peer][other]`; the optimizer has the parameters of all. Terms are logged as
    `PEER.TERM`, each the mean over the others.

    Zhang et al. 2018, arXiv 1706.00384, equation 6 (all peers step at once, on what was said before the step).
    """

    def __init__(
        self,
        peers: Mapping[str, Callable[[Batch], Outputs]],
        criteria: Mapping[str, Mapping[str, Criterion]],
        optimizer: torch.optim.Optimizer,
        engine: Engine | None = None,
        *,
        max_grad_norm: float | None = None,
        lr: float | Schedule | None = None,
    ) -> None:
        super().__init__(optimizer, engine, max_grad_norm=max_grad_norm, lr=lr)
        self.peers, self.criteria = peers, criteria

    @property
    def splittable(self) -> bool:
        return all(each.splittable for own in self.criteria.values() for each in own.values())

    def items(self, batch: Batch) -> Items:
        return {f"{peer}.{name}": n for peer in self.peers for name, n in self._first(peer).items(batch).items()}

    def weights(self, clock: Clock) -> dict[str, float]:
        return {f"{peer}.{name}": w for peer in self.peers for name, w in self._first(peer).weights(clock).items()}

    def losses(self, batch: Batch, clock: Clock, shares: Mapping[str, Tensor | float] | None) -> Losses:
        with self.engine.autocast():
            peer_outputs = {peer: forward(batch) for peer, forward in self.peers.items()}
        teacher_outputs = {peer: detached(outputs) for peer, outputs in peer_outputs.items()}
        total: Tensor | None = None
        logged: dict[str, Tensor] = {}
        for peer, own in peer_outputs.items():
            mine = shares_of(peer, shares)
            others = self.criteria[peer]
            for other, criterion in others.items():
                loss, terms = criterion(own, {other: teacher_outputs[other]}, batch, clock, mine)
                part = loss / len(others) if len(others) > 1 else loss
                total = part if total is None else total + part
                for name, term in terms.items():
                    name = f"{peer}.{name}"
                    logged[name] = logged[name] + term / len(others) if name in logged else term / len(others)
        assert total is not None
        return total, logged, {}

    def _first(self, peer: str) -> Criterion:
        return next(iter(self.criteria[peer].values()))


def shares_of(name: str, shares: Mapping[str, Tensor | float] | None) -> dict[str, Tensor | float] | None:
    """Of shares by NAME.TERM those of one name, by term."""
    if shares is None:
        return None
    return {key.removeprefix(f"{name}."): each for key, each in shares.items() if key.startswith(f"{name}.")}


def detached(outputs: Outputs) -> Outputs:
    """The same without gradient.

    >>> detached(Outputs(torch.ones(1, requires_grad=True))).logits.requires_grad
    False
    """
    return replace(outputs, losses={}).map(Tensor.detach)
