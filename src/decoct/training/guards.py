"""Guards: a loss or gradient that is not finite never reaches a checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Guard:
    """What `fit` does about non-finite numbers: go back and leave the batch out; the `limit`-th one ends the run."""

    limit: int = 3


class NonFinite(ArithmeticError):
    """Raised by an update before its optimizer step, where looking at the numbers costs no wait."""


@dataclass(frozen=True)
class Origin:
    """Where a step's batches came from: epoch, number of the first batch in it, how many, keys of first samples."""

    epoch: int
    batch: int
    batches: int
    keys: tuple[Any, ...]

    def record(self) -> dict[str, Any]:
        """Plain data for the log: keys as hexadecimal numbers, at most 4 a batch."""
        keys = [f"{int(key):016x}" for some in self.keys if some is not None for key in some[:4]]
        return {"epoch": self.epoch, "batch": self.batch, "batches": self.batches, "keys": keys}


def finite(loss: Tensor, gradients: list[Tensor]) -> Tensor | None:
    """Checks a loss and its gradients.

    On the CPU: None when all is finite, NonFinite otherwise. On an accelerator: 1.0 or 0.0 on the device, not read.
    """
    norms = torch._foreach_norm(gradients) if gradients else ()
    if loss.device.type != "cpu":
        total = torch.stack([loss.detach().reshape(()), *norms]).sum()
        return torch.isfinite(total).to(torch.float32)
    if not math.isfinite(sum(map(float, norms), loss.item())):
        _look_closely(loss, gradients)
    return None


def _look_closely(loss: Tensor, gradients: list[Tensor]) -> None:
    if not torch.isfinite(loss).item():
        raise NonFinite("loss")
    if not all(torch.isfinite(each).all().item() for each in gradients):
        raise NonFinite("gradient")
