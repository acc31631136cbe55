"""Variational information distillation: the teacher's features predicted with a variance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.objectives._features import Layers, feature
from decoct.objectives._logits import only
from decoct.objectives._numeric import full_precision, item_mean, promote, refuse_unlike, shape
from decoct.objectives.base import Objective, Probe, Term
from decoct.outputs import Batch, Needs, Outputs
from decoct.training.clock import Clock


@full_precision
def vid_loss(mean: Tensor, variance: Tensor, teacher: Tensor) -> Tensor:
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


class VID(Objective):
    """Predicts the teacher's features from the student's, with a learned variance per channel (Ahn 2019)."""

    use: ClassVar[str] = "vid"
    layers: Layers

    def needs(self) -> Mapping[str, Needs]:
        return {
            "student": Needs(features=frozenset(self.layers)),
            "teacher": Needs(features=frozenset(self.layers.values())),
        }

    def build(self, probe: Probe) -> Term:
        """The running term; RecipeError where the pairs are not maps of one resolution or tokens of one length."""
        return VIDTerm(self, probe)


class VIDTerm(Term):
    """For each pair three layers of width-1 convolutions (maps) or linear ones, and a variance per channel."""

    def __init__(self, objective: VID, probe: Probe) -> None:
        super().__init__()
        self.objective = objective
        self.networks = nn.ModuleList()
        teacher = only(probe.teachers)
        for own, theirs in objective.layers.items():
            s = feature(objective, "student", probe.student, own)
            t = feature(objective, "teacher", teacher, theirs)
            same = s.shape[2:] == t.shape[2:] if s.ndim == 4 else s.shape[:-1] == t.shape[:-1]
            if s.ndim != t.ndim or s.ndim not in (2, 3, 4) or not same:
                raise RecipeError(
                    f"{objective.label}: student {own} {shape(s)} and teacher {theirs} {shape(t)}; "
                    f"only the widths may differ"
                )
            axis = 1 if s.ndim == 4 else -1
            network = _Predictor(s.shape[axis], t.shape[axis], maps=s.ndim == 4)
            self.networks.append(network.to(s.device, promote(s)[0].dtype))

    def forward(self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock) -> Tensor:
        teacher = only(teachers)
        total: Tensor | None = None
        for network, (own, theirs) in zip(self.networks, self.objective.layers.items()):
            mean, variance = network(promote(feature(self.objective, "student", student, own))[0])
            value = vid_loss(mean, variance, feature(self.objective, "teacher", teacher, theirs))
            total = value if total is None else total + value
        assert total is not None
        return total

    def items(self, batch: Batch) -> Tensor | int:
        return len(batch)


class _Predictor(nn.Module):
    def __init__(self, width: int, wanted: int, *, maps: bool) -> None:
        super().__init__()
        sizes = ((width, wanted), (wanted, wanted), (wanted, wanted))
        layers: list[nn.Module] = []
        for a, b in sizes:
            layers += [nn.Conv2d(a, b, 1, bias=False) if maps else nn.Linear(a, b, bias=False), nn.ReLU()]
        self.mean = nn.Sequential(*layers[:-1])
        # softplus(0.5413) = 1: the variance starts at one.
        self.spread = nn.Parameter(torch.full((wanted, 1, 1) if maps else (wanted,), 0.5413))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(x), F.softplus(self.spread) + 1e-5
