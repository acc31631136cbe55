"""Robust soft label adversarial distillation."""

from __future__ import annotations

from torch import Tensor

from decoct.objectives._numeric import full_precision
from decoct.objectives.kd import kd_loss


@full_precision
def rslad_loss(
    student_adversarial: Tensor,
    student_clean: Tensor,
    teacher: Tensor,
    *,
    weight: float = 5 / 6,
    mask: Tensor | None = None,
) -> Tensor:
    """Mean of weight·KL(teacher‖adversarial student) + (1 − weight)·KL(teacher‖clean student), T = 1.

    Logits `[*B, C]`, `mask` `[*B]` bool; the teacher saw the clean inputs. 0 at student == teacher. Convention: sum
    over classes, mean over items; the authors' code takes a mean over classes too, this divided by C.

    Zi et al. 2021, arXiv 2108.07969, equation 7.

    >>> import torch
    >>> x = torch.randn(2, 3)
    >>> rslad_loss(x, x, x).item()
    0.0
    """
    robust = kd_loss(student_adversarial, teacher, temperature=1.0, mask=mask)
    return weight * robust + (1 - weight) * kd_loss(student_clean, teacher, temperature=1.0, mask=mask)
