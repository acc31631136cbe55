"""Skewed reverse Kullback-Leibler divergence."""

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
def skew_reverse_kl_loss(
    student: Logits, teacher: Logits, *, alpha: float = 0.1, temperature: float = 1.0, mask: Mask | None = None
) -> Loss:
    """Mean over tokens of KL(q ‖ (1−α)p + αq).

    Logits `[*B, V]`, class axis last; `mask` `[*B]` bool, the tokens that count; in nats, without T². p =
    softmax(teacher/T), q = softmax(student/T). Sum over classes, mean over the tokens kept; 0 at student == teacher,
    and 0 with a gradient of 0 where no token is kept.
    α = 0 is the reverse KL, α = 1 gives 0. The authors' code takes the same mean over tokens.

    Ko et al. 2024 (DistiLLM), arXiv 2402.03898, equation 6.

    >>> import torch
    >>> s, t = torch.zeros(1, 2), torch.tensor([[2.0, 0.0]])
    >>> skew_reverse_kl_loss(s, t).item() < skew_reverse_kl_loss(s, t, alpha=0.0).item()
    True
    """
    student, teacher = logit_pair("skew_reverse_kl_loss", student, teacher, mask, temperature)
    return item_mean(_divergence.skew_reverse_kl(student, teacher, alpha=alpha, temperature=temperature), mask)


class SkewReverseKL(LogitsObjective):
    """KL of the student to a mixture of both: bounded gradients (Ko 2024).

    `alpha`: the student's share of the mixture, from 0 (reverse KL) to 1, a number or schedule.
    """

    use: ClassVar[str] = "skew_reverse_kl"
    alpha: Fraction = 0.1
    temperature: Temperature = 1.0

    def swept(self, clock: Clock) -> Soft:
        return Soft("skew_reverse_kl", at(self.temperature, clock), options={"alpha": at(self.alpha, clock)})

    def value(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, mask: Tensor | None, clock: Clock
    ) -> Tensor:
        temperature = at(self.temperature, clock)
        return skew_reverse_kl_loss(student, teacher, alpha=at(self.alpha, clock), temperature=temperature, mask=mask)
