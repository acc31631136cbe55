"""Rows of numbers as one byte each: so many steps below the row's largest; code 255 is -inf."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 254
NONE = 255
RANGE = 256.0
"""What lies further than this below the largest of its row counts as -inf: it has no part in any softmax, and a mask
of -1e9 would otherwise take all the precision."""


def quantized(values: Tensor) -> tuple[Tensor, Tensor]:
    """Codes uint8 `[N, C]`, and float32 `[N, 2]`: the largest value and the step of each row.

    |error| ≤ step / 2 (up to the rounding of float32), step = (largest − smallest) / 254; the largest is exact.
    """
    largest = values.amax(-1, keepdim=True)
    below = largest - values
    kept = below <= RANGE
    step = below.masked_fill(~kept, 0.0).amax(-1, keepdim=True) / STEPS
    codes = (below / step.clamp(min=torch.finfo(torch.float32).tiny)).round_().clamp_(max=STEPS)
    return codes.masked_fill_(~kept, NONE).to(torch.uint8), torch.cat([largest, step], -1)


def restored(codes: Tensor, affine: Tensor) -> Tensor:
    """float32 `[N, C]` from what `quantized` gave."""
    largest, step = affine.unsqueeze(1).unbind(-1)
    values = torch.addcmul(largest, codes.float(), step, value=-1)
    if codes.numel() and int(codes.max()) == NONE:
        values.masked_fill_(codes == NONE, -torch.inf)
    return values
