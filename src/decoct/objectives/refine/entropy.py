"""Items on which the teacher spreads its probability are left out or count less."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from decoct.objectives._fields import Fraction, Temperature
from decoct.objectives._numeric import log_softmax, weigh
from decoct.objectives.refine.base import Lesson, Refinement
from decoct.outputs import Batch
from decoct.training.clock import Clock
from decoct.training.schedules import at


def normalised_entropy(teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """`[*B]` in [0, 1]: −Σ_c p log p / log K, p = softmax(teacher / T), K the classes that are not −inf (0 for K = 1).

    >>> normalised_entropy(torch.tensor([[0.0, 0.0], [900.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    log_p = log_softmax(teacher, temperature)
    entropy = -weigh(log_p.exp(), log_p).sum(-1)
    possible = (teacher != -torch.inf).sum(-1)
    return (entropy / possible.clamp(min=2).to(entropy.dtype).log()).clamp(0.0, 1.0) + 0.0  # no −0


class EntropyFilter(Refinement):
    """Leaves out items on which the teacher's entropy, over its greatest possible one, is above `at_most`.

    `at_most` a number or a schedule; an item that is left out counts as 0 in the mean. `weigh`: kept items count by
    1 − entropy besides. `temperature`: at which the entropy is taken.
    """

    use: ClassVar[str] = "entropy"
    at_most: Fraction = 0.5
    weigh: bool = False
    temperature: Temperature = 1.0

    def refine(self, lesson: Lesson, batch: Batch, clock: Clock) -> Lesson:
        entropy = normalised_entropy(lesson.logits(self.use), temperature=at(self.temperature, clock))
        kept = lesson.only(entropy <= at(self.at_most, clock))
        return kept.weighted(1 - entropy) if self.weigh else kept
