"""Weighted soft labels: the teacher counts more where the student errs more than it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from decoct.objectives._logits import LogitsObjective, Temperature
from decoct.objectives._numeric import class_target, full_precision, item_mean, log_softmax, logit_pair, weigh
from decoct.objectives._shapes import Logits, Loss, Mask, Target
from decoct.training.clock import Clock
from decoct.training.schedules import at


@full_precision
def wsld_loss(
    student: Logits, teacher: Logits, target: Target, *, temperature: float = 2.0, mask: Mask | None = None
) -> Loss:
    """T² · mean over items of w·(−Σ_c p log q), w = 1 − exp(−max(CE_s/(CE_t + 1e-7), 0)).

    Logits `[*B, C]`, class ids `[*B]`, `mask` `[*B]` bool. CE_s, CE_t: cross-entropies with the target at T = 1; w
    takes no gradient. A cross-entropy: not 0 at student == teacher. The authors' code multiplies by 2.5 and adds the
    cross-entropy with the labels. RecipeError: a target outside the classes that the mask keeps.

    Zhou et al. 2021, "Rethinking Soft Labels for Knowledge Distillation", arXiv 2102.00650, equation 11.

    >>> logits = torch.zeros(1, 2)
    >>> round(wsld_loss(logits, logits, torch.tensor([0]), temperature=1.0).item(), 4)
    0.4382
    """
    student, teacher = logit_pair("wsld_loss", student, teacher, mask, temperature)
    target = class_target("wsld_loss", student, target, mask)
    index = target.unsqueeze(-1)
    own = -log_softmax(student.detach(), 1.0).gather(-1, index).squeeze(-1)
    theirs = -log_softmax(teacher, 1.0).gather(-1, index).squeeze(-1)
    weight = -torch.expm1(-(own / (theirs + 1e-7)).clamp(min=0))
    rows = -weigh(log_softmax(teacher, temperature).exp(), log_softmax(student, temperature)).sum(-1)
    return temperature**2 * item_mean(weight * rows, mask)


class WSLD(LogitsObjective):
    """Weighs each sample's soft label by how much more the student errs than the teacher (Zhou 2021)."""

    use: ClassVar[str] = "wsld"
    supervised: ClassVar[bool] = True
    temperature: Temperature = 2.0

    def value(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, mask: Tensor | None, clock: Clock
    ) -> Tensor:
        assert target is not None
        return wsld_loss(student, teacher, target, temperature=at(self.temperature, clock), mask=mask)
