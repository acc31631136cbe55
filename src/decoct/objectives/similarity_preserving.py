"""Similarity-preserving distillation: how alike the samples of a batch are."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from decoct.objectives._features import FeatureObjective
from decoct.objectives._maps import vector_pair
from decoct.objectives._numeric import full_precision, item_mean, unit
from decoct.objectives._shapes import Features, Loss
from decoct.training.clock import Clock


@full_precision
def similarity_preserving_loss(student: Features, teacher: Features) -> Loss:
    """Σ (G_s − G_t)² / B², G = FFᵀ `[B, B]` with rows L2-normalised.

    Features `[B, ...]`, flattened to F; widths may differ. 0 at student == teacher. Relates the samples of a batch.
    Convention: the authors' code (weight 3000 there).

    Tung and Mori 2019, arXiv 1907.09682, equation 4.

    >>> import torch
    >>> similarity_preserving_loss(torch.eye(2), torch.ones(2, 2)).item() > 0
    True
    """
    s, t = vector_pair("similarity_preserving_loss", student, teacher)
    return item_mean((unit(s @ s.T) - unit(t @ t.T)).square())


class SimilarityPreserving(FeatureObjective):
    """Matches how alike the samples of a batch are (Tung and Mori 2019); widths may differ."""

    use: ClassVar[str] = "similarity_preserving"
    auto: ClassVar[Literal["stages", "embedding", "none"]] = "embedding"
    reshaped: ClassVar[bool] = False
    splittable: ClassVar[bool] = False

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None, clock: Clock) -> Tensor:
        return similarity_preserving_loss(student, teacher)
