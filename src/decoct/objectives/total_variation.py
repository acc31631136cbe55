"""Total variation distance for sequences."""

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
def total_variation_loss(
    student: Logits, teacher: Logits, *, temperature: float = 1.0, mask: Mask | None = None
) -> Loss:
    """Mean over tokens of ½ Σ|p − q|.

    Logits `[*B, V]`, class axis last; `mask` `[*B]` bool, the tokens that count; in nats, without T². p =
    softmax(teacher/T), q = softmax(student/T). Sum over classes, mean over the tokens kept; 0 at student == teacher,
    and 0 with a gradient of 0 where no token is kept.
    Bounded by 1. Peers: the L1 distance is twice this.

    Wen et al. 2023, arXiv 2307.15190, section 3.

    >>> import torch
    >>> s, t = torch.zeros(1, 2), torch.tensor([[2.0, 0.0]])
    >>> round(total_variation_loss(s, t).item(), 4)
    0.3808
    """
    student, teacher = logit_pair("total_variation_loss", student, teacher, mask, temperature)
    return item_mean(_divergence.total_variation(student, teacher, temperature=temperature), mask)


class TotalVariation(LogitsObjective):
    """Half the L1 distance between the two distributions, for each token (Wen 2023)."""

    use: ClassVar[str] = "total_variation"
    temperature: Temperature = 1.0

    def swept(self, clock: Clock) -> Soft:
        return Soft("total_variation", at(self.temperature, clock))

    def value(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, mask: Tensor | None, clock: Clock
    ) -> Tensor:
        temperature = at(self.temperature, clock)
        return total_variation_loss(student, teacher, temperature=temperature, mask=mask)
