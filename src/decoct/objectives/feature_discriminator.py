"""Adversarial features: a discriminator tells student from teacher, and the student learns to be taken for it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.objectives._features import PairedObjective, PairNetwork
from decoct.objectives._numeric import full_precision, item_mean, promote, shape
from decoct.objectives._shapes import Loss, Same
from decoct.objectives.adapters import Adapter, Widths
from decoct.objectives.base import Probe
from decoct.outputs import Batch
from decoct.training.clock import Clock
from decoct.training.schedules import Scalar, at


@full_precision
def discriminator_loss(student: Same, teacher: Same) -> Loss:
    """Mean over B of ½(−log(1 − σ(s)) − log σ(t)): binary cross-entropy of "is it the teacher's".

    Scores `[B]` or `[B, 1]` of a discriminator, with gradient on both sides: the teacher's scores depend on the
    discriminator, and its features are detached before it. log 2 where it cannot tell. The student is to be led the
    other way, by `reverse_gradient`.

    Goodfellow et al. 2014, arXiv 1406.2661, equation 1; on features for distillation: Shen et al. 2019 (MEAL),
    arXiv 1812.02425.

    >>> round(discriminator_loss(torch.zeros(3), torch.zeros(3)).item(), 4)
    0.6931
    """
    if student.shape != teacher.shape:
        raise RecipeError(f"discriminator_loss: scores {shape(student)} and {shape(teacher)}; they must be equal")
    student, teacher = promote(student, teacher)
    return item_mean(0.5 * (F.softplus(student) + F.softplus(-teacher)))


def reverse_gradient(x: Tensor, strength: float = 1.0) -> Tensor:
    """x itself, with its gradient multiplied by −strength.

    Ganin and Lempitsky 2015, arXiv 1409.7495.

    >>> x = torch.ones(2, requires_grad=True)
    >>> reverse_gradient(x, 0.5).sum().backward(); x.grad
    tensor([-0.5000, -0.5000])
    """
    result = _Reverse.apply(x, strength)
    assert isinstance(result, Tensor)
    return result


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient, None


class FeatureDiscriminator(PairedObjective):
    """Trains a discriminator between the features of both nets, and the student against it (MEAL; Shen 2019).

    `hidden`: width of its two hidden layers; `reversal`: a number or schedule, how strongly the student is led against
    the discriminator, 0 or more. Features are averaged over positions unless `adapter` says otherwise. The gradient is
    reversed between the two, so that one descent trains both; the value is the discriminator's loss, log 2 where it
    cannot tell them apart.
    """

    use: ClassVar[str] = "feature_discriminator"
    widths: ClassVar[Widths] = "linear"
    adapter: Adapter = "pool"
    hidden: int = Field(default=128, ge=1, le=65_536)
    reversal: Scalar = 1.0

    def network(self, student: Tensor, teacher: Tensor, probe: Probe, path: str) -> PairNetwork:
        if student.shape[1:] != teacher.shape[1:]:
            raise RecipeError(f"feature_discriminator: {shape(student)} and {shape(teacher)}; take adapter: pool")
        return Discriminator(self, teacher[0].numel())


class Discriminator(PairNetwork):
    """Three linear layers on the flattened feature, with leaky ReLUs between them."""

    def __init__(self, objective: FeatureDiscriminator, width: int) -> None:
        super().__init__()
        self.objective = objective
        hidden = objective.hidden
        self.score = nn.Sequential(
            nn.Linear(width, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, 1),
        )

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None, batch: Batch, clock: Clock) -> Tensor:
        turned = reverse_gradient(student.flatten(1), at(self.objective.reversal, clock))
        return discriminator_loss(self.score(turned), self.score(teacher.flatten(1).to(student.dtype)))
