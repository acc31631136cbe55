"""Adaptive mixture of forward and reverse KL."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from decoct.objectives import _divergence
from decoct.objectives._logits import Fraction, LogitsObjective, Temperature
from decoct.objectives._numeric import full_precision, item_mean, logit_pair
from decoct.objectives._shapes import Logits, Loss, Mask
from decoct.objectives._sweep import Soft
from decoct.training.clock import Clock
from decoct.training.schedules import at


@full_precision
def adaptive_kl_loss(
    student: Logits, teacher: Logits, *, alpha: float = 0.5, temperature: float = 1.0, mask: Mask | None = None
) -> Loss:
    """Mean over tokens of w_head·KL(p‖q) + w_tail·KL(q‖p).

    Logits `[*B, V]`, class axis last; `mask` `[*B]` bool, the tokens that count; in nats, without T². p =
    softmax(teacher/T), q = softmax(student/T). Sum over classes, mean over the tokens kept; 0 at student == teacher,
    and 0 with a gradient of 0 where no token is kept.
    Classes sorted by ascending p: the tail are those whose cumulative p, their own included, is at most α; the head
    the rest. w = Σ|p−q| over each part, without gradient, divided by their sum (½ each where p = q).

    Wu et al. 2024, "Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large Language Models",
    arXiv 2404.02657, equation 11.

    >>> import torch
    >>> s, t = torch.zeros(1, 2), torch.tensor([[2.0, 0.0]])
    >>> round(adaptive_kl_loss(s, t).item(), 4)
    0.3808
    """
    student, teacher = logit_pair("adaptive_kl_loss", student, teacher, mask, temperature)
    return item_mean(_divergence.adaptive_kl(student, teacher, alpha=alpha, temperature=temperature), mask)


class AdaptiveKL(LogitsObjective):
    """Mixes forward and reverse KL by where student and teacher differ (Wu 2024).

    `alpha`: the probability, summed from the least likely class on, that makes the tail, a number or schedule from 0 to
    1.
    """

    use: ClassVar[str] = "adaptive_kl"
    alpha: Fraction = 0.5
    temperature: Temperature = 1.0

    def swept(self, clock: Clock) -> Soft:
        return Soft("adaptive_kl", at(self.temperature, clock), options={"alpha": at(self.alpha, clock)})

    def value(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, mask: Tensor | None, clock: Clock
    ) -> Tensor:
        temperature = at(self.temperature, clock)
        return adaptive_kl_loss(student, teacher, alpha=at(self.alpha, clock), temperature=temperature, mask=mask)
