"""Hints (FitNets): the student's features drawn to the teacher's."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from decoct.objectives._features import FeatureObjective
from decoct.objectives._maps import equal_pair
from decoct.objectives._numeric import full_precision, item_mean
from decoct.objectives._shapes import Loss, Same
from decoct.objectives.adapters import Widths
from decoct.training.clock import Clock


@full_precision
def hint_loss(student: Same, teacher: Same) -> Loss:
    """Mean over all elements of (s − t)². Shapes equal, any. 0 at student == teacher.

    Convention: `F.mse_loss`. Peers: the paper's ½ sum over elements, mean over the batch, is this times half the
    number of elements of a sample.

    Romero et al. 2015, arXiv 1412.6550, equation 3.

    >>> import torch
    >>> hint_loss(torch.ones(2, 3), torch.zeros(2, 3)).item()
    1.0
    """
    student, teacher = equal_pair("hint_loss", student, teacher)
    return item_mean((student - teacher).square())


class Hint(FeatureObjective):
    """Draws features to the teacher's, through a learned regressor where widths differ (Romero 2015)."""

    use: ClassVar[str] = "hint"
    widths: ClassVar[Widths] = "regressor"

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None, clock: Clock) -> Tensor:
        return hint_loss(student, teacher)
