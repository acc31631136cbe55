"""Movement pruning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from decoct.compression import Compressed, Evidence
from decoct.pruning._masks import ByMovement, Unstructured, masked


class Movement(Unstructured):
    """Sets the weights to zero that training moves towards zero.

    Scores are the sum of -weight · gradient over the steps done, the gradient that of the masked network; the highest
    are kept, and a weight comes back when its score rises before masks are complete. Compressed at once (recover:
    after), scores are those of a few training batches, which is the first order change of the loss. Settings as of
    `magnitude`. Sanh, Wolf & Rush 2020, "Movement pruning".
    """

    use: ClassVar[str] = "movement"

    def apply(self, module: nn.Module, evidence: Evidence) -> Compressed:
        weights = self.weights(module)
        scores = {name: torch.zeros_like(each) for name, each in weights.items()}
        for loss in evidence.losses_of(module, "movement pruning at once"):
            found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for (name, each), gradient in zip(weights.items(), found):
                if gradient is not None:
                    scores[name] -= each.detach() * gradient
        lowest = {name: torch.where(each.detach() == 0, -torch.inf, scores[name]) for name, each in weights.items()}
        return masked(module, self.masks(lowest, 1.0))

    def scoring(self, weights: Mapping[str, nn.Parameter]) -> ByMovement:
        return ByMovement(weights)
