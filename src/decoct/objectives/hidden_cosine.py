"""Angle between hidden states."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from decoct.objectives._features import FeatureObjective
from decoct.objectives._maps import equal_pair
from decoct.objectives._numeric import full_precision, item_mean, norm, refuse_unlike_mask, unit
from decoct.objectives._shapes import Loss, Mask, Tokenwise
from decoct.objectives.adapters import Widths
from decoct.training.clock import Clock


@full_precision
def hidden_cosine_loss(student: Tokenwise, teacher: Tokenwise, *, mask: Mask | None = None) -> Loss:
    """Mean over the positions kept of 1 − ⟨s, t⟩, both L2-normalised.

    Hidden states of one shape `[B, N, D]`, `mask` `[B, N]` bool. 0 at student == teacher, 1 where either is a zero
    vector. Convention: `CosineEmbeddingLoss` with target 1 over the positions kept, as in DistilBERT.

    Sanh et al. 2019 (DistilBERT), arXiv 1910.01108, section 3.

    >>> hidden_cosine_loss(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 3.0]]])).item()
    1.0
    """
    student, teacher = equal_pair("hidden_cosine_loss", student, teacher)
    if mask is not None:
        refuse_unlike_mask("hidden_cosine_loss", mask, student.shape[:-1])
        student, teacher = (each.masked_fill(~mask.unsqueeze(-1), 0.0) for each in (student, teacher))
    s, t = unit(student), unit(teacher)
    # 1 − ⟨s, t⟩ = ½‖s − t‖² + ½(1 − ‖s‖²) + ½(1 − ‖t‖²), where the last two vanish for unit vectors: exact at equality.
    gap = 0.5 * (s - t).square().sum(-1)
    return item_mean(gap + _shortfall(student, s) + _shortfall(teacher, t), mask)


def _shortfall(x: Tensor, direction: Tensor) -> Tensor:
    short = norm(x).squeeze(-1) < 1e-12
    return torch.where(short, 0.5 * (1 - direction.square().sum(-1)), 0.0)


class HiddenCosine(FeatureObjective):
    """Angle between hidden states (DistilBERT), through a linear layer where widths differ."""

    use: ClassVar[str] = "hidden_cosine"
    positions: ClassVar[Literal["all", "kept", "pairs kept"]] = "kept"
    widths: ClassVar[Widths] = "connector"

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None, clock: Clock) -> Tensor:
        return hidden_cosine_loss(student, teacher, mask=mask)
