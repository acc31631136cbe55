"""Mixup: the weighted mean of two images and of their targets."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch import Tensor

from decoct.tasks.mixing.base import Mixing, column


class Mixup(Mixing):
    """λ · own + (1 − λ) · other, pixels and targets alike, λ from Beta(alpha, alpha) (Zhang et al. 2018).

    The authors draw one λ a batch and take partners from the batch; here both belong to the sample's view. Pixels
    become float32 between 0 and 255. Zhang et al. 2018, arXiv 1710.09412, equation 2.
    """

    use: ClassVar[str] = "mixup"
    between: ClassVar[bool] = True

    def blend(self, own: Tensor, other: Tensor, shares: np.ndarray, hashes: np.ndarray) -> tuple[Tensor, np.ndarray]:
        part = column(shares, own)
        return part * own.float() + (1 - part) * other.float(), shares
