"""CutMix: a box of another image pasted in, targets mixed by area."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from decoct.data.hashing import keyed, uniform
from decoct.tasks.mixing.base import Mixing


def boxes(shares: np.ndarray, hashes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, ...]:
    """`(top, bottom, left, right)` int64 `[B]` each: a box of area 1 − share of the image, cut off at its edges.

    Its centre is uniform over the pixels; its sides are 2 · (floor(H · √(1 − share)) // 2), W alike, as the authors do.
    """
    side = np.sqrt(1 - shares)
    found = []
    for name, size in (("row", height), ("column", width)):
        centre = (uniform(keyed(name, hashes)) * size).astype(np.int64)
        half = (size * side).astype(np.int64) // 2
        found += [np.clip(centre - half, 0, size), np.clip(centre + half, 0, size)]
    return tuple(found)


class CutMix(Mixing):
    """Pastes a box of another image; a target counts by the area of its pixels (Yun et al. 2019).

    The box has the area 1 − λ, λ from Beta(alpha, alpha), before it is cut off at the edges; targets take the area that
    is left. Pixels stay uint8. Yun et al. 2019, arXiv 1905.04899, equations 1 and 2.
    """

    use: ClassVar[str] = "cutmix"

    def blend(self, own: Tensor, other: Tensor, shares: np.ndarray, hashes: np.ndarray) -> tuple[Tensor, np.ndarray]:
        height, width = own.shape[-2:]
        top, bottom, left, right = boxes(shares, hashes, height, width)
        rows, columns = np.arange(height)[None, :], np.arange(width)[None, :]
        down = (rows >= top[:, None]) & (rows < bottom[:, None])
        across = (columns >= left[:, None]) & (columns < right[:, None])
        inside = torch.from_numpy(down[:, None, :, None] & across[:, None, None, :])
        area = (bottom - top) * (right - left)
        return torch.where(inside, other, own), 1 - area / (height * width)
