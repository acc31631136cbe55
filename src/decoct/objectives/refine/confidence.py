"""Items on which the teacher is not sure are left out."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from decoct.objectives._fields import Fraction, Temperature
from decoct.objectives._numeric import log_softmax
from decoct.objectives.refine.base import Lesson, Refinement
from decoct.outputs import Batch
from decoct.training.clock import Clock
from decoct.training.schedules import at


def confident(teacher: Tensor, *, at_least: float, temperature: float = 1.0) -> Tensor:
    """Bool `[*B]`: max_c softmax(teacher / T)_c ≥ `at_least`, for logits `[*B, C]`.

    >>> import torch
    >>> confident(torch.tensor([[4.0, 0.0], [0.1, 0.0]]), at_least=0.9).tolist()
    [True, False]
    """
    return log_softmax(teacher, temperature).exp().amax(-1) >= at_least


class ConfidenceFilter(Refinement):
    """Leaves out items on which the teacher's highest probability is below `at_least` (a number or a schedule).

    An item that is left out counts as 0 in the mean, so the term becomes smaller, as in FixMatch (Sohn et al. 2020,
    arXiv 2001.07685, equation 4). `temperature`: at which the probability is taken.
    """

    use: ClassVar[str] = "confidence"
    at_least: Fraction = 0.5
    temperature: Temperature = 1.0

    def refine(self, lesson: Lesson, batch: Batch, clock: Clock) -> Lesson:
        logits = lesson.logits(self.use)
        keep = confident(logits, at_least=at(self.at_least, clock), temperature=at(self.temperature, clock))
        return lesson.only(keep)
