"""Neuron selectivity transfer: the distributions of the channels' maps, by a squared-product kernel."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from decoct.objectives._features import FeatureObjective
from decoct.objectives._maps import in_pieces, map_pair
from decoct.objectives._numeric import full_precision, unit
from decoct.objectives._shapes import Features, Loss
from decoct.training.clock import Clock


@full_precision
def nst_loss(student: Features, teacher: Features) -> Loss:
    """mean k(t, t) + mean k(s, s) − 2 mean k(s, t), k(x, y) = ⟨x, y⟩², over L2-normalised channel maps.

    Maps `[B, C, H, W]` or tokens `[B, N, D]`; numbers of channels may differ; where H differs, the larger map is
    pooled first. Means over the batch and all pairs of channels. 0 at student == teacher. Computed as the squared
    distance of the second moments or of the kernels, whichever is smaller, in bounded memory. The authors train with a
    weight of 50 on the same mean.

    Huang and Wang 2017, arXiv 1707.01219, equation 6 with the polynomial kernel d = 2, c = 0.

    >>> x = torch.eye(2).reshape(1, 2, 1, 2)
    >>> nst_loss(x, x).item(), nst_loss(x[:, :1], x[:, 1:]).item()
    (0.0, 2.0)
    """
    s, t = map_pair("nst_loss", student, teacher)
    size, positions = len(s), s.shape[2]
    by_positions = positions <= max(s.shape[1], t.shape[1])
    rows = positions if by_positions else max(s.shape[1], t.shape[1])
    total = in_pieces(_moments if by_positions else _kernels, size, rows * rows, s, t)
    return total / max(size, 1)


def _moments(start: int, stop: int, s: Tensor, t: Tensor) -> Tensor:
    """Σ over samples of ‖XᵀX/C_s − YᵀY/C_t‖²: the same number, from P × P matrices."""
    x, y = unit(s[start:stop]), unit(t[start:stop])
    return (x.mT @ x / x.shape[1] - y.mT @ y / y.shape[1]).square().sum()


def _kernels(start: int, stop: int, s: Tensor, t: Tensor) -> Tensor:
    x, y = unit(s[start:stop]), unit(t[start:stop])
    pairs = ((y, y, 1.0), (x, x, 1.0), (x, y, -2.0))
    return torch.stack([factor * (a @ b.mT).square().mean((1, 2)).sum() for a, b, factor in pairs]).sum()


class NST(FeatureObjective):
    """Matches the distribution of the channels' maps (Huang and Wang 2017); widths may differ."""

    use: ClassVar[str] = "nst"
    places: ClassVar[bool] = False

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None, clock: Clock) -> Tensor:
        return nst_loss(student, teacher)
