"""Squared distance between hidden states."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from decoct.objectives._features import FeatureObjective
from decoct.objectives._maps import equal_pair
from decoct.objectives._numeric import element_mean, full_precision, refuse_unlike_mask
from decoct.objectives._shapes import Loss, Mask, Tokenwise
from decoct.objectives.adapters import Widths
from decoct.training.clock import Clock


@full_precision
def hidden_mse_loss(student: Tokenwise, teacher: Tokenwise, *, mask: Mask | None = None) -> Loss:
    """Mean over the positions kept and D of (s − t)².

    Hidden states of one shape `[B, N, D]`, `mask` `[B, N]` bool. 0 at student == teacher. Convention: `F.mse_loss`
    over the positions kept; peers that average over padding too are smaller by the share kept.

    Jiao et al. 2020 (TinyBERT), arXiv 1909.10351, equation 8.

    >>> import torch
    >>> s, t = torch.ones(1, 2, 3), torch.zeros(1, 2, 3)
    >>> hidden_mse_loss(s, t, mask=torch.tensor([[True, False]])).item()
    1.0
    """
    student, teacher = equal_pair("hidden_mse_loss", student, teacher)
    if mask is not None:
        refuse_unlike_mask("hidden_mse_loss", mask, student.shape[:-1])
        student, teacher = (each.masked_fill(~mask.unsqueeze(-1), 0.0) for each in (student, teacher))
    return element_mean((student - teacher).square(), mask)


class HiddenMSE(FeatureObjective):
    """Squared distance between hidden states (TinyBERT), through a linear layer where widths differ."""

    use: ClassVar[str] = "hidden_mse"
    positions: ClassVar[Literal["all", "kept", "pairs kept"]] = "kept"
    widths: ClassVar[Widths] = "connector"

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None, clock: Clock) -> Tensor:
        return hidden_mse_loss(student, teacher, mask=mask)
