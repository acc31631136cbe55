"""Codec, the Spec of how logits become bytes and come back."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decoct.errors import DataError
from decoct.outputs import TopK
from decoct.spec import Spec

Decoded = Tensor | TopK
"""float32 logits `[N, C]`, or the largest log-probabilities of each row."""
NOTHING = 1e-30
"""Probabilities below this add nothing to a divergence: at most 1e-27 nats."""


@dataclass(frozen=True)
class Lost:
    """What compression cost, means over rows: `kl` in nats at temperature 1, `kept_mass` of the classes kept one by
    one; `note` says what `kl` compares."""

    kl: float
    kept_mass: float
    note: str = ""


class Codec(Spec):
    """Describes how rows of logits are kept; each row by itself, so that neither order nor batch mates matter."""

    @abstractmethod
    def columns(self, classes: int) -> dict[str, int]:
        """Bytes of a row by column."""

    @abstractmethod
    def encode(self, logits: Any, seen: np.ndarray) -> dict[str, np.ndarray]:
        """Logits `[N, C]` (torch or NumPy) as columns uint8 `[N, width]`; `seen` uint64 `[N]` keys random draws.

        DataError for NaN, +inf and rows that hold no finite logit. -inf is kept.
        """

    @abstractmethod
    def decode(self, columns: Mapping[str, np.ndarray], classes: int) -> Decoded:
        """What `encode` wrote."""

    @abstractmethod
    def lost(self, logits: Any, decoded: Decoded) -> Lost:
        """KL(teacher ‖ decoded) and the kept mass of logits `[N, C]`, in float64."""

    def width(self, classes: int) -> int:
        """Bytes of a row."""
        return sum(self.columns(classes).values())


def checked(logits: Any) -> Tensor:
    """Logits `[N, C]` as a float32 tensor; DataError unless each row has a finite largest logit."""
    found = torch.as_tensor(logits).detach()
    if found.dim() != 2 or found.shape[1] == 0:
        raise DataError(f"logits have the shape {tuple(found.shape)}; a codec takes rows [N, C]")
    found = found.float()
    bad = len(found) - int(found.amax(-1).isfinite().sum()) if len(found) else 0
    if bad:
        raise DataError(
            f"{bad} of {len(found)} rows of logits hold NaN or +inf, or nothing but -inf: "
            "run the teacher in float32 or bfloat16, and look at its inputs"
        )
    return found


def raw(values: Tensor) -> np.ndarray:
    """The bytes of each row of a tensor `[N, ...]`: uint8 `[N, width]`."""
    count = math.prod(values.shape[1:])
    flat = values.detach().cpu().contiguous().reshape(len(values), count)
    if flat.numel() == 0:
        return np.zeros((len(flat), count * flat.element_size()), np.uint8)
    return flat.view(torch.uint8).numpy()


def typed(content: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Bytes `[N, width]` as a tensor `[N, width / size]` of another type."""
    if content.size == 0:
        return torch.zeros(len(content), content.shape[1] // dtype.itemsize, dtype=dtype)
    return torch.from_numpy(np.require(content, requirements=["C", "W"])).view(dtype)


def kl(log_p: Tensor, log_q: Tensor) -> float:
    """Mean over rows of Σ p (log p − log q), float64, where p is more than nothing."""
    log_p, log_q = log_p.double(), log_q.double()
    p = log_p.exp()
    return (p * (log_p - log_q)).masked_fill(p < NOTHING, 0.0).sum(-1).mean().item()
