"""Samples weighted by the gradient of the teacher's own loss."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from decoct.objectives._numeric import log_softmax
from decoct.objectives.refine.base import Lesson, Refinement, known_targets
from decoct.outputs import Batch
from decoct.training.clock import Clock


def gradient_norm(teacher: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """`[*B]` in [0, 1]: ‖p − y‖₂ / √2, the norm of the gradient of the cross-entropy to the teacher's logits.

    p = softmax(teacher), `target` y `[*B, C]`. Where `known` is False: the root of the expected square with y drawn
    from p, √((1 − Σ p²) / 2).

    >>> import torch
    >>> teacher, target = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    >>> round(gradient_norm(teacher, target, torch.tensor([True])).item(), 4)
    0.5
    """
    p = log_softmax(teacher, 1.0).exp()
    squares = (p - target).square().sum(-1).where(known, 1 - p.square().sum(-1))
    return (squares.clamp(min=0) / 2).sqrt()


class GradientWeighting(Refinement):
    """Weighs each item by the norm of the gradient of the teacher's own loss to its logits (EL2N).

    `favour`: `hard` items, which the teacher has not settled, count by that norm; `easy` ones by 1 minus it. The mean
    stays over all items. Paul et al. 2021, arXiv 2107.07075, definition 2.2, rank samples by the norm.
    """

    use: ClassVar[str] = "gradient"
    labels: ClassVar[bool] = True
    favour: Literal["hard", "easy"] = "hard"

    def refine(self, lesson: Lesson, batch: Batch, clock: Clock) -> Lesson:
        teacher = lesson.logits(self.use)
        norm = gradient_norm(teacher, *known_targets(lesson, teacher, batch))
        return lesson.weighted(norm if self.favour == "hard" else 1 - norm)
