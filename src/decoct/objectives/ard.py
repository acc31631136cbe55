"""Adversarially robust distillation: the student on attacked inputs, the teacher on clean ones."""

from __future__ import annotations

from torch import Tensor

from decoct.objectives._numeric import full_precision
from decoct.objectives.cross_entropy import cross_entropy
from decoct.objectives.kd import kd_loss


@full_precision
def ard_loss(
    student_adversarial: Tensor,
    student_clean: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    alpha: float = 1.0,
    temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """α·`kd_loss`(student on adversarial inputs, teacher on clean ones) + (1 − α)·cross-entropy(clean student).

    Logits `[*B, C]`, class ids `[*B]`, `mask` `[*B]` bool. The KD part has T², the cross-entropy T = 1. Not 0 at
    student == teacher when α < 1. Convention: the authors' code.

    Goldblum et al. 2020, arXiv 1905.09747, equation 3.

    >>> import torch
    >>> x = torch.randn(2, 3)
    >>> ard_loss(x, x, x, torch.tensor([0, 1])).item()
    0.0
    """
    robust = kd_loss(student_adversarial, teacher, temperature=temperature, mask=mask)
    return alpha * robust + (1 - alpha) * cross_entropy(student_clean, target, mask=mask)
