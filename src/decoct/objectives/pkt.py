"""Probabilistic knowledge transfer: the conditional probability of one sample given another."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from decoct.objectives._features import FeatureObjective
from decoct.objectives._maps import vector_pair
from decoct.objectives._numeric import full_precision, item_mean, norm
from decoct.objectives._shapes import Features, Loss
from decoct.training.clock import Clock


@full_precision
def pkt_loss(student: Features, teacher: Features) -> Loss:
    """Mean over all B² of K_t·log((K_t + 1e-7)/(K_s + 1e-7)), K = (XXᵀ + 1)/2, rows divided by their sum.

    Features `[B, ...]`, flattened, rows x/(‖x‖ + 1e-7); widths may differ. 0 at student == teacher. Relates the
    samples of a batch. Convention: the authors' code, a mean over all pairs; a KL per row is this times B.

    Passalis and Tefas 2018, arXiv 1803.10837, equation 6.

    >>> import torch
    >>> x = torch.randn(3, 4)
    >>> pkt_loss(x, x).item()
    0.0
    """
    s, t = vector_pair("pkt_loss", student, teacher)
    own, theirs = _conditional(s), _conditional(t)
    return item_mean(theirs * ((theirs + 1e-7) / (own + 1e-7)).log())


def _conditional(x: Tensor) -> Tensor:
    x = x / (norm(x) + 1e-7)
    kernel = (x @ x.T + 1) / 2
    return kernel / kernel.sum(1, keepdim=True)


class PKT(FeatureObjective):
    """Matches the probability of one sample given another (Passalis and Tefas 2018); widths may differ."""

    use: ClassVar[str] = "pkt"
    auto: ClassVar[Literal["stages", "embedding", "none"]] = "embedding"
    reshaped: ClassVar[bool] = False
    splittable: ClassVar[bool] = False

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None, clock: Clock) -> Tensor:
        return pkt_loss(student, teacher)
