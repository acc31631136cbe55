"""Masked generative distillation: the teacher's whole feature made from parts of the student's."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from decoct.objectives._features import PairedObjective, PairNetwork
from decoct.objectives._keyed import keyed_uniform
from decoct.objectives.adapters import Widths, as_map
from decoct.objectives.base import Probe
from decoct.objectives.hint import hint_loss
from decoct.outputs import Batch
from decoct.training.clock import Clock


class MGD(PairedObjective):
    """Makes the teacher's features from the student's with a share of the places masked (Yang 2022).

    `masked`: the share of places set to 0, drawn anew at each step from the sample's key. The generator is two 3×3
    convolutions with a ReLU between them, after a 1×1 convolution where widths differ. The value is `hint_loss` of
    what it makes; the authors' sum over C, H, W, mean over B, is this times C·H·W (their weight: 2e-5).
    Yang et al. 2022, arXiv 2205.01529, equation 3.
    """

    use: ClassVar[str] = "mgd"
    widths: ClassVar[Widths] = "linear"
    masked: float = Field(default=0.65, ge=0, lt=1)

    def network(self, student: Tensor, teacher: Tensor, probe: Probe, path: str) -> PairNetwork:
        return Generator(as_map("mgd", teacher).shape[1], self.masked)


class Generator(PairNetwork):
    """Masks places, then makes features of the same width."""

    def __init__(self, width: int, masked: float) -> None:
        super().__init__()
        self.masked = masked
        self.make = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None, batch: Batch, clock: Clock) -> Tensor:
        student, teacher = as_map("mgd", student), as_map("mgd", teacher)
        height, width = student.shape[2:]
        draw = keyed_uniform(batch, clock.step, height * width, student.device).reshape(-1, 1, height, width)
        return hint_loss(self.make(student * (draw >= self.masked)), teacher)
