"""Attention transfer: where in the picture the features are strong."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from decoct.objectives._features import FeatureObjective
from decoct.objectives._maps import map_pair
from decoct.objectives._numeric import full_precision, item_mean, refuse_unless, unit
from decoct.objectives._shapes import Features, Loss
from decoct.training.clock import Clock


@full_precision
def attention_transfer_loss(student: Features, teacher: Features, *, p: int = 2) -> Loss:
    """Mean over B·H·W of (a_s − a_t)², a = flattened mean over channels of x^p (no abs), L2-normalised per sample.

    Maps `[B, C, H, W]` or tokens `[B, N, D]`; widths may differ; where H differs, the larger map is adaptively
    average-pooled first. 0 at student == teacher. Convention: the authors' code (`at_loss`). Peers: the paper's norm
    over positions, mean over samples, is this times H·W.

    Zagoruyko and Komodakis 2017, arXiv 1612.03928, equation 2.

    >>> import torch
    >>> x = torch.tensor([[[[1.0, 0.0]]]]); y = torch.tensor([[[[0.0, 2.0]], [[0.0, 1.0]]]])
    >>> attention_transfer_loss(x, y).item()
    1.0
    """
    refuse_unless("attention_transfer_loss", "p", p, p == int(p) and p >= 1, "a whole number, 1 or more")
    s, t = map_pair("attention_transfer_loss", student, teacher)
    return item_mean((unit(s.pow(p).mean(1)) - unit(t.pow(p).mean(1))).square())


class AttentionTransfer(FeatureObjective):
    """Matches where in the picture the features are strong (Zagoruyko 2017); widths may differ.

    `p`: the power of features that is summed over channels.
    """

    use: ClassVar[str] = "attention_transfer"
    places: ClassVar[bool] = False
    p: int = Field(default=2, ge=1, le=64)

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None, clock: Clock) -> Tensor:
        return attention_transfer_loss(student, teacher, p=self.p)
