"""Movement pruning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from decoct.pruning._masks import ByMovement, Unstructured, masked
from decoct.pruning._scores import gradients
from decoct.training.compression import Compressed, Evidence


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
        for found in gradients(module, evidence, "movement pruning at once"):
            for name in weights.keys() & found.keys():
                scores[name] -= weights[name].detach() * found[name]
        lowest = {name: torch.where(each.detach() == 0, -torch.inf, scores[name]) for name, each in weights.items()}
        return masked(module, self.masks(lowest, 1.0))

    def scoring(self, weights: Mapping[str, nn.Parameter]) -> ByMovement:
        return ByMovement(weights)
