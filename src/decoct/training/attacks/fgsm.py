"""FGSM: one step along the sign of the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from decoct.training.attacks.base import Attack, ascent


class FGSM(Attack):
    """Fast gradient sign method: one step of epsilon along the sign of the gradient.

    Goodfellow et al. 2015, arXiv 1412.6572.

    >>> FGSM(epsilon=2.0).perturb(lambda x: (3 * x).sum(), torch.tensor([5.0, 254.0]))
    tensor([  7., 255.])
    """

    use: ClassVar[str] = "fgsm"

    def perturb(self, loss: Callable[[Tensor], Tensor], clean: Tensor) -> Tensor:
        with torch.no_grad():
            return self.within(clean + self.epsilon * ascent(loss, clean), clean)
