"""Reverse Kullback-Leibler divergence for sequences."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from decoct.objectives import _divergence
from decoct.objectives._logits import LogitsObjective, Temperature
from decoct.objectives._numeric import full_precision, item_mean, logit_pair
from decoct.objectives._shapes import Logits, Loss, Mask
from decoct.objectives._sweep import Soft
from decoct.training.clock import Clock
from decoct.training.schedules import at


@full_precision
def reverse_kl_loss(student: Logits, teacher: Logits, *, temperature: float = 1.0, mask: Mask | None = None) -> Loss:
    """Mean over tokens of KL(q‖p): the student keeps to what the teacher finds likely.

    Logits `[*B, V]`, class axis last; `mask` `[*B]` bool, the tokens that count; in nats, without T². p =
    softmax(teacher/T), q = softmax(student/T). Sum over classes, mean over the tokens kept; 0 at student == teacher,
    and 0 with a gradient of 0 where no token is kept.
    Peers: MiniLLM's policy gradient adds sequence-level terms; on given tokens its single-step part is this.

    Gu et al. 2024, arXiv 2306.08543, equation 1 (per token).

    >>> import torch
    >>> s, t = torch.zeros(1, 2), torch.tensor([[2.0, 0.0]])
    >>> round(reverse_kl_loss(s, t).item(), 4)
    0.4338
    """
    student, teacher = logit_pair("reverse_kl_loss", student, teacher, mask, temperature)
    return item_mean(_divergence.reverse_kl(student, teacher, temperature=temperature), mask)


class ReverseKL(LogitsObjective):
    """KL(q‖p) for each token: the student keeps to what the teacher finds likely (Gu 2024)."""

    use: ClassVar[str] = "reverse_kl"
    temperature: Temperature = 1.0

    def swept(self, clock: Clock) -> Soft:
        return Soft("reverse_kl", at(self.temperature, clock))

    def value(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, mask: Tensor | None, clock: Clock
    ) -> Tensor:
        temperature = at(self.temperature, clock)
        return reverse_kl_loss(student, teacher, temperature=temperature, mask=mask)
