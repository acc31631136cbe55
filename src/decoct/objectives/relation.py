"""Self-attention relations (MiniLM): how queries, keys or values relate to one another."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives._features import FeatureObjective
from decoct.objectives._maps import feature_pair
from decoct.objectives._numeric import full_precision, item_mean, kl_rows, refuse_unlike_mask, shape
from decoct.objectives._shapes import Heads, Loss, Places
from decoct.training.clock import Clock


@full_precision
def relation_loss(student: Heads, teacher: Heads, *, mask: Places | None = None) -> Loss:
    """Mean over heads and kept rows of KL(teacher‖student) of softmax(XXᵀ/√d).

    X `[B, R, L, d]`: queries, keys or values already split in R relation heads; R and L equal, d may differ (each side
    divides by its own √d). `mask` `[B, L]` bool: columns not kept are left out of the softmax. 0 at student ==
    teacher. Convention: the papers'; one call for each of the relations that are summed.

    Wang et al. 2020 (MiniLM), arXiv 2002.10957, equation 6, and 2021 (MiniLMv2), arXiv 2012.15828, equation 2.

    >>> x = torch.randn(1, 2, 3, 4)
    >>> relation_loss(x, x).item()
    0.0
    """
    if student.ndim != 4 or teacher.ndim != 4 or student.shape[:3] != teacher.shape[:3]:
        raise RecipeError(
            f"relation_loss: student {shape(student)} and teacher {shape(teacher)}; allowed: [B, R, L, d] with "
            f"equal B, R, L"
        )
    s, t = feature_pair("relation_loss", student, teacher)
    rows = columns = None
    if mask is not None:
        refuse_unlike_mask("relation_loss", mask, student.shape[:1] + student.shape[2:3])
        rows = mask.unsqueeze(1).expand(student.shape[:3])
        out = ~mask[:, None, :, None]
        s, t = s.masked_fill(out, 0.0), t.masked_fill(out, 0.0)
        columns = (~mask & mask.any(-1, keepdim=True))[:, None, None, :]
    return item_mean(kl_rows(_relations(t, columns), _relations(s, columns)), rows)


def _relations(x: Tensor, out: Tensor | None) -> Tensor:
    scores = x @ x.mT / math.sqrt(x.shape[-1])
    return F.log_softmax(scores if out is None else scores.masked_fill(out, -torch.inf), -1)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Queries, keys or values `[B, L, D]` or `[B, H, L, d]` as `[B, heads, L, D/heads]` relation heads.

    >>> split_heads(torch.zeros(2, 5, 12), 3).shape, split_heads(torch.zeros(2, 4, 5, 3), 6).shape
    (torch.Size([2, 3, 5, 4]), torch.Size([2, 6, 5, 2]))
    """
    joined = x.transpose(1, 2).flatten(2) if x.ndim == 4 else x
    if joined.ndim != 3 or joined.shape[2] % heads:
        raise RecipeError(f"relation: features {shape(x)} cannot be split in {heads} heads of equal width")
    return joined.unflatten(2, (heads, -1)).transpose(1, 2)


class Relation(FeatureObjective):
    """Matches how queries, keys or values relate to one another (MiniLM); widths may differ.

    `heads`: relation heads in which features `[B, L, D]` or `[B, H, L, d]` are split first, the same on both sides;
    None where they come as `[B, R, L, d]` with equal R.
    """

    use: ClassVar[str] = "relation"
    auto: ClassVar[Literal["stages", "embedding", "none"]] = "none"
    reshaped: ClassVar[bool] = False
    positions: ClassVar[Literal["all", "kept", "pairs kept"]] = "kept"

    heads: int | None = Field(default=None, ge=1, le=65_536)

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None, clock: Clock) -> Tensor:
        if self.heads is not None:
            student, teacher = split_heads(student, self.heads), split_heads(teacher, self.heads)
        return relation_loss(student, teacher, mask=mask)
