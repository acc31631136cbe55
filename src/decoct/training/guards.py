"""Guards: a loss or gradient that is not finite never reaches a checkpoint."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Guard:
    """What `fit` does about non-finite numbers: go back, find out where they come from, and leave it out.

    Samples that are to blame are left out once and for all, and only counted. Of batches in which none is to blame, or
    all are, the `limit`-th one ends the run, and so does going back more than `most` times.
    """

    limit: int = 3
    most: int = 50


class NonFinite(ArithmeticError):
    """Raised by an update before its optimizer step, where looking at the numbers costs no wait."""


@dataclass(frozen=True)
class Origin:
    """Where a step's batches came from: epoch, number of the first batch in it, how many, keys of first samples."""

    epoch: int
    batch: int
    batches: int
    keys: Sequence[Any]

    @classmethod
    def of(cls, noted: tuple[int, int, Sequence[Any]]) -> Origin:
        """From epoch, batch and the keys of each batch, which is what is noted at each step."""
        epoch, batch, keys = noted
        return cls(epoch, batch, len(keys), keys)

    def record(self) -> dict[str, Any]:
        """Plain data for the log: keys as hexadecimal numbers, at most 4 a batch."""
        keys = [f"{int(key):016x}" for some in self.keys if some is not None for key in some[:4]]
        return {"epoch": self.epoch, "batch": self.batch, "batches": self.batches, "keys": keys}


def given_up(skips: Sequence[Mapping[str, Any]], last: float | None) -> str:
    """Why a run ends whose batches `skips` were not finite, and what each was due to; `last`: the last finite loss."""
    reasons = dict.fromkeys(str(each["why"]) for each in skips)
    batches = "; ".join(f"batch {each['batch']} of epoch {each['epoch']}" for each in skips)
    keys = ", ".join(skips[-1]["keys"]) or "without keys"
    return (
        f"loss or gradient was not finite {len(skips)} times ({batches}; samples of the last {keys}); "
        f"the last finite loss was {last}; {'; '.join(reasons)}"
    )


def finite(loss: Tensor, gradients: list[Tensor]) -> Tensor | None:
    """Checks a loss and its gradients.

    On the CPU: None when all is finite, NonFinite otherwise. On an accelerator: 1.0 or 0.0 on the device, not read.
    """
    here = loss.device.type == "cpu"
    found, one = (_ON_CPU.flag, _ON_CPU.one) if here else (torch.zeros((), device=loss.device), _one(loss.device))
    try:
        # The kernel of torch's own loss scaler, with a scale of 1: one pass, and no number is changed.
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, one)
    except NotImplementedError:  # sparse or complex gradients
        for each in gradients:
            dense = each.coalesce().values() if each.is_sparse else each
            found.copy_(torch.maximum(found, (~torch.isfinite(dense)).any().to(found.dtype)))
    if not here:
        return torch.isfinite(loss.detach()).to(torch.float32) * (1 - found)
    wrong = found.item()
    if wrong:
        found.zero_()
    if not math.isfinite(loss.item()):
        raise NonFinite("loss")
    if wrong:
        raise NonFinite("gradient")
    return None


class _OnCPU(threading.local):
    """A thread's flag of non-finite gradients, 0 between checks, and a scale of 1: made once, not at each step."""

    def __init__(self) -> None:
        self.flag, self.one = torch.zeros((), device="cpu"), torch.ones((), device="cpu")


_ON_CPU = _OnCPU()


@lru_cache
def _one(device: torch.device) -> Tensor:
    return torch.ones((), device=device)
