"""Cross-entropy with the teacher's softened distribution as target."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from decoct.objectives._logits import Temperature, TopKObjective
from decoct.objectives._numeric import full_precision, item_mean, log_softmax, logit_pair, weigh
from decoct.objectives._shapes import Logits, Loss, Mask
from decoct.objectives.top_k_kl import top_k_cross_entropy
from decoct.outputs import TopK
from decoct.training.clock import Clock
from decoct.training.schedules import at


@full_precision
def soft_cross_entropy(student: Logits, teacher: Logits, *, temperature: float = 1.0, mask: Mask | None = None) -> Loss:
    """Mean over items of −Σ_c p log q, p = softmax(teacher/T), q = softmax(student/T), without T².

    Logits `[*B, C]`, class axis last; `mask` `[*B]` bool; in nats. At student == teacher it is the teacher's entropy,
    not 0, with gradient 0. Convention: T² times this has the gradient of `kd_loss` and exceeds it by T² times the
    teacher's entropy.

    Hinton et al. 2015, arXiv 1503.02531, section 2.

    >>> import torch
    >>> logits = torch.zeros(3, 2)
    >>> round(soft_cross_entropy(logits, logits).item(), 4)
    0.6931
    """
    student, teacher = logit_pair("soft_cross_entropy", student, teacher, mask, temperature)
    rows = -weigh(log_softmax(teacher, temperature).exp(), log_softmax(student, temperature)).sum(-1)
    return item_mean(rows, mask)


class SoftCrossEntropy(TopKObjective):
    """Cross-entropy with the teacher's softened distribution, without the factor T² (Hinton 2015)."""

    use: ClassVar[str] = "soft_cross_entropy"
    temperature: Temperature = 1.0

    def value(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, mask: Tensor | None, clock: Clock
    ) -> Tensor:
        return soft_cross_entropy(student, teacher, temperature=at(self.temperature, clock), mask=mask)

    def value_of_top_k(self, student: Tensor, targets: TopK, mask: Tensor | None, clock: Clock) -> Tensor:
        return top_k_cross_entropy(student, targets, temperature=at(self.temperature, clock), mask=mask)
