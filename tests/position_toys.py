"""A task with an answer at each position, for tests: which of them count is said by ids and targets."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from decoct.outputs import Batch, Outputs

IGNORED = -100


@dataclass(frozen=True)
class Tagging:
    """Classes (int64 targets `[B, L]`, -100 for none) or numbers (`[B, L, D]`, NaN for none) at positions.

    A model answers wherever the ids `[B, L]` of its reader are above 0.
    """

    use: ClassVar[str] = "tagging"
    parts: ClassVar[dict[str, Any]] = {}
    numbers: bool = False
    output: ClassVar[str] = "logits"
    metric: ClassVar[tuple[str, str]] = ("accuracy", "max")

    @property
    def distribution(self) -> bool:
        return not self.numbers

    @property
    def answer(self) -> "Tagging":
        return self

    def kept(self, batch: Batch, over: str, reader: str = "student") -> Tensor:
        there = batch.side(reader) > 0
        return there if over == "items" else there & self._known(batch)

    def labelled(self, batch: Batch) -> Tensor:
        return self.kept(batch, "labelled")

    def items(self, batch: Batch) -> Tensor:
        return self.labelled(batch).sum()

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        logits, known = outputs.logits, self.labelled(batch)
        assert logits is not None
        if batch.target.is_floating_point():
            rows = torch.where(known.unsqueeze(-1), logits - batch.target, 0.0).square().mean(-1)
        else:
            target = torch.where(known, batch.target, IGNORED).flatten()
            rows = F.cross_entropy(logits.flatten(0, -2), target, ignore_index=IGNORED, reduction="none")
        return rows.sum() / known.sum().clamp(min=1)

    def _known(self, batch: Batch) -> Tensor:
        target: Any = batch.target
        known = ~target.isnan().any(-1) if target.is_floating_point() else target != IGNORED
        return known if batch.labelled is None else known & batch.labelled[:, None]
