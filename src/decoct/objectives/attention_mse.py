"""Squared distance between attention scores."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives._features import FeatureObjective
from decoct.objectives._maps import equal_pair
from decoct.objectives._numeric import element_mean, full_precision, refuse_unlike_mask, shape
from decoct.objectives._shapes import Attention, Loss, Places
from decoct.objectives.adapters import Widths
from decoct.training.clock import Clock


@full_precision
def attention_mse_loss(student: Attention, teacher: Attention, *, mask: Places | None = None) -> Loss:
    """Mean over heads and all pairs of kept positions (i, j) of (s − t)²: Σ / (H·Σ_b n_b²).

    Attention scores of one shape `[B, H, L, L]`, before the softmax; `mask` `[B, L]` bool. A score of −inf on both
    sides (a causal mask) adds 0. 0 at student == teacher. Convention: `F.mse_loss` over the kept pairs; the authors'
    code sets scores below −100 to 0 and averages over padding too.

    Jiao et al. 2020 (TinyBERT), arXiv 1909.10351, equation 7.

    >>> s, t = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    >>> attention_mse_loss(s, t, mask=torch.tensor([[True, False]])).item()
    1.0
    """
    student, teacher = equal_pair("attention_mse_loss", student, teacher)
    if student.ndim != 4 or student.shape[2] != student.shape[3]:
        raise RecipeError(f"attention_mse_loss: scores {shape(student)}; allowed: [B, H, L, L]")
    out = (student == -torch.inf) & (teacher == -torch.inf)
    pairs = None
    if mask is not None:
        refuse_unlike_mask("attention_mse_loss", mask, student.shape[:1] + student.shape[3:])
        pairs = (mask.unsqueeze(1) & mask.unsqueeze(2)).unsqueeze(1).expand_as(student)
        out = out | ~pairs
    student, teacher = student.masked_fill(out, 0.0), teacher.masked_fill(out, 0.0)
    return element_mean((student - teacher).square(), pairs)


class AttentionMSE(FeatureObjective):
    """Squared distance between attention scores `[B, H, L, L]` before the softmax (TinyBERT)."""

    use: ClassVar[str] = "attention_mse"
    auto: ClassVar[Literal["stages", "embedding", "none"]] = "none"
    reshaped: ClassVar[bool] = False
    widths: ClassVar[Widths] = "heads"
    positions: ClassVar[Literal["all", "kept", "pairs kept"]] = "pairs kept"

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None, clock: Clock) -> Tensor:
        return attention_mse_loss(student, teacher, mask=mask)
