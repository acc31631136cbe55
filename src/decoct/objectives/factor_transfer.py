"""Factor transfer: normalised factors compared by absolute difference."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from decoct.objectives._features import FeatureObjective
from decoct.objectives._maps import equal_pair
from decoct.objectives._numeric import full_precision, item_mean, unit
from decoct.objectives._shapes import Loss, Same
from decoct.objectives.adapters import Widths
from decoct.training.clock import Clock


@full_precision
def factor_transfer_loss(student: Same, teacher: Same) -> Loss:
    """Mean over all elements of |f_s − f_t|, f flattened and L2-normalised per sample.

    Factors of one shape `[B, ...]`. 0 at student == teacher. Convention: the authors' code with p = 1; the paper
    writes the norm itself, which is this times the number of elements.

    Kim et al. 2018, "Paraphrasing Complex Network", arXiv 1802.04977, equation 3.

    >>> import torch
    >>> factor_transfer_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]])).item()
    1.0
    """
    student, teacher = equal_pair("factor_transfer_loss", student, teacher)
    return item_mean((unit(student.flatten(1)) - unit(teacher.flatten(1))).abs())


class FactorTransfer(FeatureObjective):
    """Compares normalised features by absolute difference (Kim 2018), a learned adapter where widths differ."""

    use: ClassVar[str] = "factor_transfer"
    widths: ClassVar[Widths] = "connector"

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None, clock: Clock) -> Tensor:
        return factor_transfer_loss(student, teacher)
