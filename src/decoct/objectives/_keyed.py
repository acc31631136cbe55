"""Keys of samples on the device, and randomness that depends on the sample and the step, never on the batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from decoct.outputs import Batch


def _signed(number: int) -> int:
    """The lowest 64 bits, read as a signed number."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def batch_keys(batch: Batch, device: torch.device) -> Tensor | None:
    """The content keys `[B]` as int64 (the same 64 bits) on `device`; None where the samples have none."""
    keys = batch.keys
    if keys is None:
        return None
    if not isinstance(keys, Tensor):
        keys = torch.from_numpy(np.ascontiguousarray(np.asarray(keys, dtype=np.uint64)).view(np.int64))
    elif keys.dtype != torch.int64:
        keys = keys.view(torch.int64)
    return keys.to(device, non_blocking=True)


def keyed_uniform(batch: Batch, step: int, count: int, device: torch.device) -> Tensor:
    """`[B, count]` float32 in [0, 1), from each sample's key, the step and the place alone.

    The same for any order and any split of the batch, and after a resume. Samples without keys all get one row.
    Splitmix64 (Steele et al. 2014).
    """
    keys = batch_keys(batch, device)
    if keys is None:
        keys = torch.zeros(len(batch), dtype=torch.int64, device=device)
    places = torch.arange(1, count + 1, dtype=torch.int64, device=device)
    rows = _mix(keys + _signed(step * _GOLDEN))
    bits = _mix(rows.unsqueeze(1) + places * _GOLDEN)
    return ((bits >> 40) & 0xFFFFFF).to(torch.float32) / (1 << 24)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _right(x, 30)) * _FIRST
    x = (x ^ _right(x, 27)) * _SECOND
    return x ^ _right(x, 31)


def _right(x: Tensor, bits: int) -> Tensor:
    """Shifts to the right, zeros from the left."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
