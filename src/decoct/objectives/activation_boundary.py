"""Activation boundaries: whether a neuron is on, not how strongly."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from decoct.objectives._features import FeatureObjective
from decoct.objectives._maps import equal_pair
from decoct.objectives._numeric import full_precision, item_mean
from decoct.objectives._shapes import Loss, Same
from decoct.objectives.adapters import Widths
from decoct.training.clock import Clock


@full_precision
def activation_boundary_loss(student: Same, teacher: Same, *, margin: float = 1.0) -> Loss:
    """Mean over all elements of (s + m)² where s > −m and t ≤ 0, plus (s − m)² where s ≤ m and t > 0, else 0.

    Pre-activation features of one shape. Not 0 at student == teacher inside the margin. Convention: mean over all
    elements; the authors' code sums over elements, divides by the batch and by 1000, and weighs layers by halves.

    Heo et al. 2019, arXiv 1811.03233, equation 4.

    >>> activation_boundary_loss(torch.tensor([0.0, 3.0]), torch.tensor([1.0, 1.0])).item()
    0.5
    """
    student, teacher = equal_pair("activation_boundary_loss", student, teacher)
    off = torch.where((student > -margin) & (teacher <= 0), (student + margin).square(), 0.0)
    on = torch.where((student <= margin) & (teacher > 0), (student - margin).square(), 0.0)
    return item_mean(off + on)


class ActivationBoundary(FeatureObjective):
    """Matches which neurons are on, with a margin (Heo 2019); a learned adapter where widths differ.

    `margin`: how far beyond the boundary the student's answers are pushed.
    """

    use: ClassVar[str] = "activation_boundary"
    widths: ClassVar[Widths] = "connector"
    margin: float = Field(default=1.0, ge=0)

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None, clock: Clock) -> Tensor:
        return activation_boundary_loss(student, teacher, margin=self.margin)
