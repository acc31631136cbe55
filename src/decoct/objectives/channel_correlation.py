"""Inter-channel correlation: which channels go together."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives._features import FeatureObjective
from decoct.objectives._maps import as_map, feature_pair, in_pieces
from decoct.objectives._numeric import full_precision, shape, unit
from decoct.objectives._shapes import Features, Loss
from decoct.objectives.adapters import Widths
from decoct.training.clock import Clock


@full_precision
def channel_correlation_loss(student: Features, teacher: Features) -> Loss:
    """Σ (G_s − G_t)² / (C·B²), G = FFᵀ with rows L2-normalised, F `[C, H·W]` for each sample.

    Maps `[B, C, H, W]` or tokens `[B, N, D]` with equal B and C; sizes may differ. 0 at student == teacher. Works in
    pieces where B·C² is large, so that memory stays bounded.
    Convention: the authors' code, which divides by the batch twice; so it is not the mean over a split of the batch.

    Liu et al. 2021 (ICKD), "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation".

    >>> import torch
    >>> x = torch.eye(2).reshape(1, 2, 1, 2)
    >>> channel_correlation_loss(x, x).item()
    0.0
    """
    s, t = feature_pair("channel_correlation_loss", student, teacher)
    s, t = as_map("channel_correlation_loss", s), as_map("channel_correlation_loss", t)
    if s.shape[:2] != t.shape[:2]:
        raise RecipeError(
            f"channel_correlation_loss: student {shape(student)} and teacher {shape(teacher)}; B and C must be equal"
        )
    total = in_pieces(_gaps, len(s), 2 * s.shape[1] ** 2, s, t)
    return total / max(s.shape[1] * len(s) ** 2, 1)


def _gaps(start: int, stop: int, s: Tensor, t: Tensor) -> Tensor:
    """Σ over the samples start..stop of (G_s − G_t)²."""
    s, t = s[start:stop], t[start:stop]
    return (unit(s @ s.mT) - unit(t @ t.mT)).square().sum()


class ChannelCorrelation(FeatureObjective):
    """Matches which channels go together (Liu 2021); a learned adapter where widths differ."""

    use: ClassVar[str] = "channel_correlation"
    places: ClassVar[bool] = False
    widths: ClassVar[Widths] = "connector"
    splittable: ClassVar[bool] = False

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None, clock: Clock) -> Tensor:
        return channel_correlation_loss(student, teacher)
