"""Generalised Jensen-Shannon divergence, over the full vocabulary or a support of its most likely tokens."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, field_validator
from torch import Tensor

from decoct.objectives import _divergence
from decoct.objectives._logits import Fraction, LogitsObjective, Temperature
from decoct.objectives._numeric import full_precision, item_mean, logit_pair
from decoct.objectives._shapes import Logits, Loss, Mask
from decoct.objectives._sweep import Soft
from decoct.training.clock import Clock
from decoct.training.schedules import Schedule, at, bounds


@full_precision
def jsd_loss(
    student: Logits,
    teacher: Logits,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    mask: Mask | None = None,
    top_k: int | None = None,
    tail: bool = True,
) -> Loss:
    """Mean over tokens of β·KL(p‖M) + (1−β)·KL(q‖M), M = βp + (1−β)q; β = 0: KL(p‖q); β = 1: KL(q‖p).

    Logits `[*B, V]`, `mask` `[*B]` bool; in nats, without T². 0 at student == teacher. It tends to 0 as β tends to 0
    or 1, where it jumps to the full KL. `top_k`: the support is the teacher's top k (β = 0), the student's (β = 1) or
    their union, the same for both and not differentiated; `tail` keeps the full-vocabulary probabilities and adds one
    bucket for all the rest (none where nothing is left), otherwise both are renormalised over the support.
    Peers: the GKD trainer of TRL takes the same β and the mean over tokens.

    Agarwal et al. 2024 (GKD), arXiv 2306.13649, equation 1.

    >>> import torch
    >>> s, t = torch.zeros(1, 3), torch.tensor([[2.0, 0.0, -1.0]])
    >>> round(jsd_loss(s, t, beta=0.0).item(), 4)
    0.5743
    >>> jsd_loss(s, t, beta=0.0, top_k=2).item() <= jsd_loss(s, t, beta=0.0).item()
    True
    """
    student, teacher = logit_pair("jsd_loss", student, teacher, mask, temperature)
    rows = _divergence.jsd(student, teacher, beta=beta, temperature=temperature, top_k=top_k, tail=tail)
    return item_mean(rows, mask)


class JSD(LogitsObjective):
    """Generalised Jensen-Shannon divergence between forward (β = 0) and reverse KL (β = 1) (Agarwal 2024).

    A schedule over `beta` that reaches 0 or 1 is refused: the loss jumps there. `beta`: the teacher's share of the
    mixture, a number or schedule. `top_k`: the classes compared are the most likely ones of the teacher (β = 0), of the
    student (β = 1) or of both (None: all). `tail`: all other classes count as one, else both sides are renormalised
    without them.
    """

    use: ClassVar[str] = "jsd"
    beta: Fraction = 0.5
    temperature: Temperature = 1.0
    top_k: int | None = Field(default=None, ge=1)
    tail: bool = True

    @field_validator("beta")
    @classmethod
    def _no_jump(cls, value: Any) -> Any:
        low, high = bounds(value)
        if isinstance(value, Schedule) and (low <= 0 or high >= 1) and low != high:
            raise ValueError(f"a schedule from {low} to {high} reaches 0 or 1, where the loss jumps; keep between them")
        return value

    def swept(self, clock: Clock) -> Soft:
        options = {"beta": at(self.beta, clock), "top_k": self.top_k, "tail": self.tail}
        return Soft("jsd", at(self.temperature, clock), options=options)

    def value(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, mask: Tensor | None, clock: Clock
    ) -> Tensor:
        beta, temperature = at(self.beta, clock), at(self.temperature, clock)
        return jsd_loss(
            student, teacher, beta=beta, temperature=temperature, mask=mask, top_k=self.top_k, tail=self.tail
        )
