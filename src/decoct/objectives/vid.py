"""Variational information distillation: the teacher's features predicted with a variance."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.objectives._features import PairedObjective, PairNetwork
from decoct.objectives._numeric import full_precision, item_mean, promote, refuse_unlike, shape
from decoct.objectives._shapes import Loss, Same
from decoct.objectives.base import Probe
from decoct.outputs import Batch
from decoct.training.clock import Clock


@full_precision
def vid_loss(mean: Same, variance: Tensor, teacher: Same) -> Loss:
    """Mean over all elements of ½((t − mean)²/variance + log variance).

    `mean` and `teacher` of one shape; `variance` above 0, broadcast to it. Gradients flow to mean and variance. Not 0
    at mean == teacher. The authors' code takes the same mean, the variance being softplus(a) + 1e-5 per channel.

    Ahn et al. 2019, arXiv 1904.05835, equation 5.

    >>> vid_loss(torch.zeros(1, 2), torch.ones(2), torch.ones(1, 2)).item()
    0.5
    """
    refuse_unlike("vid_loss", mean, teacher, "the predicted mean has the teacher's shape")
    mean, variance, teacher = promote(mean, variance, teacher)
    if not _broadcasts(variance, mean):
        raise RecipeError(f"vid_loss: mean {shape(mean)} and variance {shape(variance)}; variance must broadcast to it")
    gap = (teacher.detach() - mean).square()
    return item_mean(0.5 * (gap / variance + variance.log()))


def _broadcasts(small: Tensor, large: Tensor) -> bool:
    sizes = zip(reversed(small.shape), reversed(large.shape))
    return small.ndim <= large.ndim and all(a in (1, b) for a, b in sizes)


class VID(PairedObjective):
    """Predicts the teacher's features from the student's, with a learned variance per channel (Ahn 2019).

    The mean is made by three 1×1 convolutions (tokens: linear layers) with ReLUs between them.
    """

    use: ClassVar[str] = "vid"

    def network(self, student: Tensor, teacher: Tensor, probe: Probe, path: str) -> PairNetwork:
        same = student.shape[2:] == teacher.shape[2:] if student.ndim == 4 else student.shape[:-1] == teacher.shape[:-1]
        if student.ndim != teacher.ndim or student.ndim not in (2, 3, 4) or not same:
            raise RecipeError(f"vid: student {shape(student)} and teacher {shape(teacher)}; only the widths may differ")
        axis = 1 if student.ndim == 4 else -1
        return Predictor(student.shape[axis], teacher.shape[axis], maps=student.ndim == 4)


class Predictor(PairNetwork):
    """Mean and variance of the teacher's features: three layers and a number per channel."""

    def __init__(self, width: int, wanted: int, *, maps: bool) -> None:
        super().__init__()
        sizes = ((width, wanted), (wanted, wanted), (wanted, wanted))
        layers: list[nn.Module] = []
        for a, b in sizes:
            layers += [nn.Conv2d(a, b, 1, bias=False) if maps else nn.Linear(a, b, bias=False), nn.ReLU()]
        self.mean = nn.Sequential(*layers[:-1])
        # softplus(0.5413) = 1: the variance starts at one.
        self.spread = nn.Parameter(torch.full((wanted, 1, 1) if maps else (wanted,), 0.5413))

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None, batch: Batch, clock: Clock) -> Tensor:
        return vid_loss(self.mean(student), F.softplus(self.spread) + 1e-5, teacher)
