"""Forward Kullback-Leibler divergence for sequences."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from decoct.objectives import _divergence
from decoct.objectives._logits import Temperature, TopKObjective
from decoct.objectives._numeric import full_precision, logit_pair
from decoct.objectives._shapes import Logits, Loss, Mask
from decoct.objectives._sweep import Soft
from decoct.objectives.top_k_kl import top_k_kl_loss
from decoct.outputs import TopK
from decoct.training.clock import Clock
from decoct.training.schedules import at


@full_precision
def forward_kl_loss(student: Logits, teacher: Logits, *, temperature: float = 1.0, mask: Mask | None = None) -> Loss:
    """Mean over tokens of KL(p‖q): the student covers all that the teacher finds likely.

    Logits `[*B, V]`, class axis last; `mask` `[*B]` bool, the tokens that count; in nats, without T². p =
    softmax(teacher/T), q = softmax(student/T). Sum over classes, mean over the tokens kept; 0 at student == teacher,
    and 0 with a gradient of 0 where no token is kept.
    Convention: `kd_loss` divided by T². Peers: `batchmean` over `[B, L, V]` is this times L; a mean over sequences
    first weighs tokens of short ones more.

    >>> import torch
    >>> s, t = torch.zeros(1, 2), torch.tensor([[2.0, 0.0]])
    >>> round(forward_kl_loss(s, t).item(), 4)
    0.3278
    """
    student, teacher = logit_pair("forward_kl_loss", student, teacher, mask, temperature)
    return _divergence.forward_kl_mean("forward_kl_loss", student, teacher, temperature=temperature, mask=mask)


class ForwardKL(TopKObjective):
    """KL(p‖q) for each token: the student covers all that the teacher finds likely."""

    use: ClassVar[str] = "forward_kl"
    temperature: Temperature = 1.0

    def swept(self, clock: Clock) -> Soft:
        return Soft("forward_kl", at(self.temperature, clock))

    def value(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, mask: Tensor | None, clock: Clock
    ) -> Tensor:
        temperature = at(self.temperature, clock)
        return forward_kl_loss(student, teacher, temperature=temperature, mask=mask)

    def value_of_top_k(self, student: Tensor, targets: TopK, mask: Tensor | None, clock: Clock) -> Tensor:
        return top_k_kl_loss(student, targets, temperature=at(self.temperature, clock), mask=mask)
