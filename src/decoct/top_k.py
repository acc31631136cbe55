"""TopK, a distribution of which the largest probabilities are kept one by one and the others as what they sum to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Tail = Literal["bucket", "uniform", "sample"]
"""How the classes that were not kept are taken: as one bucket, each with an equal part, or by random draws."""


@dataclass(frozen=True)
class TopK:
    """The k largest of C log-probabilities at temperature 1, and what is known of the other C − k classes.

    `ids` int64 `[*B, k]`; `log_probs` float32 `[*B, k]`, normalised over all C classes; `rest` float32 `[*B, S]`, for
    each temperature T of `temperatures` log Σ exp(log p_j / T) over the classes j that were not kept (at T = 1: the log
    of the tail's mass); -inf where nothing is left. `drawn` int64 `[*B, n]`, for `tail` "sample": classes of the tail,
    drawn with replacement by their probability, each standing for 1/n of the tail's mass.
    """

    ids: Tensor
    log_probs: Tensor
    rest: Tensor
    classes: int
    tail: Tail = "bucket"
    temperatures: tuple[float, ...] = (1.0,)
    drawn: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> TopK:
        """The same on `device`."""
        drawn = None if self.drawn is None else self.drawn.to(device, non_blocking=True)
        ids, log_probs, rest = (each.to(device, non_blocking=True) for each in (self.ids, self.log_probs, self.rest))
        return replace(self, ids=ids, log_probs=log_probs, rest=rest, drawn=drawn)
