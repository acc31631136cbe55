"""Unstructured pruning by magnitude."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import nn

from decoct.pruning._masks import ByMagnitude, Unstructured, magnitudes, masked
from decoct.training.compression import Compressed, Evidence


class Magnitude(Unstructured):
    """Sets the weights of smallest magnitude to zero.

    `ratio`: the share of weights that are zero in the end; `scope`: the smallest of all layers together, or of each
    layer; `schedule`: how the share grows while the network trains (recover: joint): at once, linearly, or
    s(t) = ratio · (1 - (1 - t)³) with t from 0 at `begin` (a share of the budget) to 1, renewed every `every` steps.
    Convolutions, linear and recurrent layers; `embeddings`: tables of embeddings too. The file becomes smaller only
    when it is compressed (zip), and ONNX Runtime does not run it faster. Zhu & Gupta 2017, "To prune, or not to prune".
    """

    use: ClassVar[str] = "magnitude"

    def apply(self, module: nn.Module, evidence: Evidence) -> Compressed:
        return masked(module, self.masks(magnitudes(self.weights(module)), 1.0))

    def scoring(self, weights: Mapping[str, nn.Parameter]) -> ByMagnitude:
        return ByMagnitude(weights)
