"""Patient distillation: the first token of intermediate layers."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives._features import FeatureObjective
from decoct.objectives._maps import equal_pair
from decoct.objectives._numeric import full_precision, item_mean, shape, unit
from decoct.objectives._shapes import Features, Loss
from decoct.objectives.adapters import Widths
from decoct.training.clock import Clock


@full_precision
def patient_loss(student: Features, teacher: Features) -> Loss:
    """Sum over D, mean over B of (s − t)², of the first position's vector, L2-normalised.

    `[B, N, D]`, or `[B, D]` itself; N may differ, D may not. 0 at student == teacher; equals 2 − 2 cos. Convention:
    the paper's, for one layer; the authors' code takes the mean over D, this divided by D.

    Sun et al. 2019 (Patient KD), arXiv 1908.09355, equation 7.

    >>> import torch
    >>> patient_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])).item()
    2.0
    """
    for who in (student, teacher):
        if who.ndim not in (2, 3):
            raise RecipeError(f"patient_loss: features {shape(who)}; allowed: [B, N, D] or [B, D]")
    first = [each[:, 0] if each.ndim == 3 else each for each in (student, teacher)]
    s, t = equal_pair("patient_loss", first[0], first[1])
    return item_mean((unit(s) - unit(t)).square().sum(-1))


class Patient(FeatureObjective):
    """Draws the first token of intermediate layers to the teacher's (Sun 2019), through a linear layer if needed."""

    use: ClassVar[str] = "patient"
    reshaped: ClassVar[bool] = False
    widths: ClassVar[Widths] = "connector"

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None, clock: Clock) -> Tensor:
        return patient_loss(student, teacher)
