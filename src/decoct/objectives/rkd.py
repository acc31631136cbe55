"""Relational knowledge distillation: distances and angles between the samples of a batch."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from decoct.objectives._features import FeatureObjective
from decoct.objectives._maps import in_pieces, vector_pair
from decoct.objectives._numeric import full_precision, item_mean, unit
from decoct.objectives._shapes import Features, Loss
from decoct.training.clock import Clock


@full_precision
def rkd_distance_loss(student: Features, teacher: Features) -> Loss:
    """Mean over all B² pairs (diagonal included) of smooth-L1 (β = 1) between normalised distances.

    Features `[B, ...]`, flattened; widths may differ. Distances √max(‖xᵢ − xⱼ‖², 1e-12), diagonal 0, divided by the
    mean of the positive ones (the gradient goes through the mean). 0 at student == teacher and for a batch of one.
    Relates the samples of a batch. Convention: the authors' code (weight 25 there).

    Park et al. 2019, arXiv 1904.05068, equations 4 to 6.

    >>> x = torch.randn(4, 3)
    >>> rkd_distance_loss(2 * x, x).item() < 1e-9
    True
    """
    s, t = vector_pair("rkd_distance_loss", student, teacher)
    return item_mean(F.smooth_l1_loss(_distances(s), _distances(t), reduction="none"))


def _distances(x: Tensor) -> Tensor:
    # Differences, not a Gram matrix: near points keep their distance in float32, and none is held whole.
    whole = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").clamp(min=1e-6)
    off = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    whole = torch.where(off, whole, 0.0)
    mean = whole.sum() / max(len(x) * (len(x) - 1), 1)
    return whole / torch.where(mean > 0, mean, 1.0)


@full_precision
def rkd_angle_loss(student: Features, teacher: Features) -> Loss:
    """Mean over all B³ triples of smooth-L1 (β = 1) between angles ⟨e_ij, e_ik⟩.

    Features `[B, ...]`, flattened; widths may differ. e_ij = x_j − x_i, L2-normalised (0 for i = j). 0 at student ==
    teacher. Relates the samples of a batch. Works in pieces where B³ or B²·D is large, so that memory stays bounded.
    Convention: the authors' code (weight 50 there).

    Park et al. 2019, arXiv 1904.05068, equations 7 to 9.

    >>> x = torch.randn(4, 3)
    >>> rkd_angle_loss(2 * x + 1, x).item() < 1e-9
    True
    """
    s, t = vector_pair("rkd_angle_loss", student, teacher)
    size = len(s)
    total = in_pieces(_angles, size, size * (size + max(s.shape[1], t.shape[1])), s, t)
    return total / max(size, 1) ** 3


def _angles(start: int, stop: int, s: Tensor, t: Tensor) -> Tensor:
    """Σ of smooth-L1 over the triples whose corner i is in start..stop."""
    pair = []
    for x in (s, t):
        e = unit(x.unsqueeze(0) - x[start:stop].unsqueeze(1))
        pair.append(e @ e.mT)
    return F.smooth_l1_loss(pair[0], pair[1], reduction="sum")


class RKDDistance(FeatureObjective):
    """Matches the distances between the samples of a batch (Park 2019); widths may differ."""

    use: ClassVar[str] = "rkd_distance"
    auto: ClassVar[Literal["stages", "embedding", "none"]] = "embedding"
    reshaped: ClassVar[bool] = False
    splittable: ClassVar[bool] = False

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None, clock: Clock) -> Tensor:
        return rkd_distance_loss(student, teacher)


class RKDAngle(FeatureObjective):
    """Matches the angles between the samples of a batch (Park 2019); widths may differ."""

    use: ClassVar[str] = "rkd_angle"
    auto: ClassVar[Literal["stages", "embedding", "none"]] = "embedding"
    reshaped: ClassVar[bool] = False
    splittable: ClassVar[bool] = False

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None, clock: Clock) -> Tensor:
        return rkd_angle_loss(student, teacher)
