"""DIST: the student's probabilities need only correlate with the teacher's."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from decoct.objectives._logits import LogitsObjective, Temperature
from decoct.objectives._numeric import full_precision, kept_rows, log_softmax, logit_pair, norm
from decoct.objectives._shapes import Logits, Loss, Mask
from decoct.training.clock import Clock
from decoct.training.schedules import Scalar, at


@full_precision
def dist_loss(
    student: Logits,
    teacher: Logits,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    mask: Mask | None = None,
) -> Loss:
    """T²·[β(1 − mean over rows of ρ(p, q)) + γ(1 − mean over columns of ρ(p, q))].

    Logits `[*B, C]`, `mask` `[*B]` bool; rows are the items kept, columns the classes over those items.
    ρ(a, b) = ⟨a−ā, b−b̄⟩ / (‖a−ā‖‖b−b̄‖ + 1e-8): a constant row or column has ρ = 0, so that a batch of one item adds
    γT². About 0 at student == teacher (up to the 1e-8). It relates the items of a batch: not the mean over a split of
    it. The authors' code has β = γ = 1 for ImageNet (2 and 2 for CIFAR-100) and the same factor T².

    Huang et al. 2022, arXiv 2205.10536, equations 8 to 10.

    >>> t = torch.tensor([[3.0, 1.0], [0.0, 2.0]])
    >>> round(dist_loss(t, t).item(), 4), round(dist_loss(-t, t).item(), 4)
    (0.0, 4.0)
    """
    student, teacher = logit_pair("dist_loss", student, teacher, mask, temperature)
    q, count = kept_rows(log_softmax(student, temperature).exp(), mask)
    p, _ = kept_rows(log_softmax(teacher, temperature).exp(), mask)
    keep = None if mask is None else mask.reshape(-1, 1)
    inter = _correlation(_centre(p, -1), _centre(q, -1), -1)
    if keep is not None:
        inter = torch.where(keep.squeeze(-1), inter, 0.0)
    items = count.clamp(min=1)
    rows = 1 - inter.sum() / items
    columns = 1 - _correlation(_centre_items(p, keep, items), _centre_items(q, keep, items), 0).mean()
    return temperature**2 * (beta * rows + gamma * columns) * (count > 0)


def _centre(x: Tensor, dim: int) -> Tensor:
    return x - x.mean(dim, keepdim=True)


def _centre_items(x: Tensor, keep: Tensor | None, count: Tensor) -> Tensor:
    centred = x - x.sum(0, keepdim=True) / count
    return centred if keep is None else torch.where(keep, centred, 0.0)


def _correlation(a: Tensor, b: Tensor, dim: int) -> Tensor:
    return (a * b).sum(dim) / (norm(a, dim) * norm(b, dim) + 1e-8).squeeze(dim)


class DIST(LogitsObjective):
    """Asks the student's probabilities to correlate with the teacher's, over classes and over samples (Huang 2022).

    `beta`: weight of the correlation over classes, a number or schedule. `gamma`: weight of that over samples, a number
    or schedule.
    """

    use: ClassVar[str] = "dist"
    splittable: ClassVar[bool] = False
    beta: Scalar = 1.0
    gamma: Scalar = 1.0
    temperature: Temperature = 1.0

    def value(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, mask: Tensor | None, clock: Clock
    ) -> Tensor:
        beta, gamma, temperature = at(self.beta, clock), at(self.gamma, clock), at(self.temperature, clock)
        return dist_loss(student, teacher, beta=beta, gamma=gamma, temperature=temperature, mask=mask)
