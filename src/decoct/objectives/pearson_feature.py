"""Pearson feature loss: features standardised channel by channel."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from decoct.objectives._features import FeatureObjective
from decoct.objectives._maps import as_map, feature_pair
from decoct.objectives._numeric import full_precision, item_mean, refuse_unlike
from decoct.objectives._shapes import Features, Loss
from decoct.objectives.adapters import Widths
from decoct.training.clock import Clock


@full_precision
def pearson_feature_loss(student: Features, teacher: Features) -> Loss:
    """½ mean over all elements of (z_s − z_t)², z = (x − mean)/(std + 1e-6) per channel over (B, H, W).

    Maps `[B, C, H, W]` (where sizes differ the student is first resized bilinearly, align_corners False) or tokens
    `[B, N, D]`. The std has Bessel's correction; a constant channel gives z = 0. 0 at student == teacher. Relates the
    samples of a batch: not the mean over a split of it. Convention: PKD in mmrazor.

    Cao et al. 2022 (PKD), arXiv 2207.02039, equation 5.

    >>> x = torch.randn(2, 3, 4, 4)
    >>> pearson_feature_loss(3 * x + 1, x).item() < 1e-9
    True
    """
    student, teacher = feature_pair("pearson_feature_loss", student, teacher)
    if student.ndim == 4 and teacher.ndim == 4 and student.shape[2:] != teacher.shape[2:]:
        student = F.interpolate(student, size=teacher.shape[2:], mode="bilinear", align_corners=False)
    refuse_unlike("pearson_feature_loss", student, teacher, "bridge them with an adapter")
    s, t = as_map("pearson_feature_loss", student), as_map("pearson_feature_loss", teacher)
    return 0.5 * item_mean((_standardised(s) - _standardised(t)).square())


def _standardised(x: Tensor) -> Tensor:
    rows = x.transpose(0, 1).flatten(1)
    if rows.shape[1]:
        rows = rows - rows[:, :1].detach()
    centred = rows - rows.mean(1, keepdim=True)
    variance = centred.square().sum(1, keepdim=True) / max(rows.shape[1] - 1, 1)
    flat = variance == 0
    return centred / (torch.where(flat, 0.0, torch.where(flat, 1.0, variance).sqrt()) + 1e-6)


class PearsonFeature(FeatureObjective):
    """Compares features standardised channel by channel (Cao 2022); a learned adapter where widths differ."""

    use: ClassVar[str] = "pearson_feature"
    places: ClassVar[bool] = False
    widths: ClassVar[Widths] = "connector"
    splittable: ClassVar[bool] = False

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None, clock: Clock) -> Tensor:
        return pearson_feature_loss(student, teacher)
