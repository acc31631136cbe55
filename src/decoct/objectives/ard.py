"""Adversarially robust distillation: the student on attacked inputs, the teacher on clean ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from decoct.objectives._adversarial import adversarial_logits
from decoct.objectives._logits import Fraction, Temperature, logits_of, only
from decoct.objectives._numeric import full_precision
from decoct.objectives._selection import places_of
from decoct.objectives._shapes import Logits, Loss, Mask, Target
from decoct.objectives.base import Objective, Probe, Suits, Term
from decoct.objectives.cross_entropy import cross_entropy
from decoct.objectives.kd import kd_loss
from decoct.outputs import DENSE, Batch, Needs, Outputs
from decoct.training.clock import Clock
from decoct.training.schedules import at


@full_precision
def ard_loss(
    student_adversarial: Logits,
    student_clean: Logits,
    teacher: Logits,
    target: Target,
    *,
    alpha: float = 1.0,
    temperature: float = 1.0,
    mask: Mask | None = None,
) -> Loss:
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


class ARD(Objective):
    """Robust distillation: the student on attacked inputs drawn to the teacher on clean ones, and the clean labels.

    `alpha`: how much the teacher counts against the labels; `temperature`: of the teacher's answer and the
    student's, in the former. For adversarial_distill.
    Goldblum et al. 2020, arXiv 1905.09747.
    """

    use: ClassVar[str] = "ard"
    supervised: ClassVar[bool] = True
    alpha: Fraction = 1.0
    temperature: Temperature = 1.0

    def suits(self) -> Suits:
        """Distributions over classes."""
        return "classes"

    def needs(self) -> Mapping[str, Needs]:
        return {"student": DENSE, "teacher": DENSE}

    def build(self, probe: Probe) -> Term:
        adversarial_logits(probe.student, self.label)
        return ARDTerm(self, places_of(probe.student))


class ARDTerm(Term):
    """Feeds both answers of the student to `ard_loss`. Items: labelled samples, or positions."""

    def __init__(self, objective: ARD, places: int) -> None:
        super().__init__()
        self.objective, self._places = objective, places
        self.selection = "index" if places == 1 else "mask"

    def forward(self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock) -> Tensor:
        label = self.objective.label
        return ard_loss(
            adversarial_logits(student, label),
            logits_of("student", student, label),
            logits_of("teacher", only(teachers), label),
            batch.target,
            alpha=at(self.objective.alpha, clock),
            temperature=at(self.objective.temperature, clock),
            mask=student.mask if self.selection == "mask" else None,
        )

    def items(self, batch: Batch) -> int:
        return len(batch) * self._places
