"""Hierarchical context loss: features compared at full size and pooled ever coarser."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives._features import FeatureObjective
from decoct.objectives._maps import equal_pair
from decoct.objectives._numeric import full_precision, item_mean, shape
from decoct.objectives._shapes import Loss, Maps
from decoct.objectives.adapters import Widths
from decoct.training.clock import Clock


@full_precision
def hierarchical_context_loss(student: Maps, teacher: Maps) -> Loss:
    """Weighted mean of the squared distance at full size and after adaptive average pooling to 4×4, 2×2, 1×1.

    Maps `[B, C, H, W]` of one shape. Weight 1 at full size; then ½, ¼, ⅛ in order for those l of 4, 2, 1 that are
    smaller than H; the sum is divided by the sum of weights. 0 at student == teacher. Convention: the authors' `hcl`.

    Chen et al. 2021 (ReviewKD), arXiv 2104.09044, section 3.3.

    >>> import torch
    >>> x = torch.ones(1, 1, 8, 8)
    >>> hierarchical_context_loss(x, 3 * x).item()
    4.0
    """
    student, teacher = equal_pair("hierarchical_context_loss", student, teacher)
    if student.ndim != 4:
        raise RecipeError(f"hierarchical_context_loss: features {shape(student)}; allowed: maps [B, C, H, W]")
    total, weights, weight = item_mean((student - teacher).square()), 1.0, 1.0
    for size in (4, 2, 1):
        if size < student.shape[2]:
            weight /= 2
            gap = F.adaptive_avg_pool2d(student, size) - F.adaptive_avg_pool2d(teacher, size)
            total = total + weight * item_mean(gap.square())
            weights += weight
    return total / weights


class HierarchicalContext(FeatureObjective):
    """Compares maps at full size and pooled ever coarser (Chen 2021); a learned adapter where widths differ."""

    use: ClassVar[str] = "hierarchical_context"
    widths: ClassVar[Widths] = "connector"

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None, clock: Clock) -> Tensor:
        return hierarchical_context_loss(student, teacher)
