"""The teacher's distribution mixed with the uniform one."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from decoct.objectives._fields import Fraction
from decoct.objectives._numeric import log_softmax
from decoct.objectives.refine.base import Lesson, Refinement
from decoct.outputs import Batch
from decoct.training.clock import Clock
from decoct.training.schedules import at


def smoothed(teacher: Tensor, *, amount: float) -> Tensor:
    """Logits `[*B, C]` of (1 − ε) · softmax(teacher) + ε / K over the K classes that are not −inf; those stay −inf.

    >>> round(smoothed(torch.tensor([[0.0, -torch.inf, 50.0]]), amount=0.2).exp().tolist()[0][0], 4)
    0.1
    """
    return uniform_log(log_softmax(teacher, 1.0), amount, teacher != -torch.inf)


def uniform_log(log_p: Tensor, amount: float, possible: Tensor) -> Tensor:
    """log((1 − ε) · p + ε / K) over the K possible classes, −inf elsewhere."""
    if amount == 0:
        return log_p
    count = possible.sum(-1, keepdim=True).clamp(min=1).to(log_p.dtype)
    share = math.log(amount) - count.log()
    kept = log_p + math.log1p(-amount) if amount < 1 else torch.full_like(log_p, -torch.inf)
    return torch.logaddexp(kept, share.expand_as(kept)).masked_fill(~possible, -torch.inf)


class TeacherSmoothing(Refinement):
    """Mixes `amount` of the uniform distribution into the teacher's, at temperature 1 (a number or a schedule).

    It lowers the trust in a teacher that is too sure; compare Müller et al. 2019, arXiv 1906.02629, on what smoothing
    takes from a teacher. Terms apply their temperature after it.
    """

    use: ClassVar[str] = "smooth"
    amount: Fraction = 0.1

    def refine(self, lesson: Lesson, batch: Batch, clock: Clock) -> Lesson:
        return lesson.answer(smoothed(lesson.logits(self.use), amount=at(self.amount, clock)))
