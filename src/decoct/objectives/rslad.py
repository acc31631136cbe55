"""Robust soft label adversarial distillation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from decoct.objectives._adversarial import adversarial_logits
from decoct.objectives._logits import Fraction, logits_of, only
from decoct.objectives._numeric import full_precision
from decoct.objectives._selection import places_of
from decoct.objectives._shapes import Logits, Loss, Mask
from decoct.objectives.base import Objective, Probe, Suits, Term
from decoct.objectives.kd import kd_loss
from decoct.outputs import DENSE, Batch, Needs, Outputs
from decoct.training.clock import Clock
from decoct.training.schedules import at


@full_precision
def rslad_loss(
    student_adversarial: Logits,
    student_clean: Logits,
    teacher: Logits,
    *,
    weight: float = 5 / 6,
    mask: Mask | None = None,
) -> Loss:
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


class RSLAD(Objective):
    """Robust soft labels: the student on attacked and on clean inputs drawn to the teacher on clean ones.

    `share`: how much the attacked inputs count against the clean ones. Reads no labels. For adversarial_distill, with
    `attack_loss: teacher` as in the paper. Zi et al. 2021, arXiv 2108.07969.
    """

    use: ClassVar[str] = "rslad"
    share: Fraction = 5 / 6

    def suits(self) -> Suits:
        """Distributions over classes."""
        return "classes"

    def needs(self) -> Mapping[str, Needs]:
        return {"student": DENSE, "teacher": DENSE}

    def build(self, probe: Probe) -> Term:
        adversarial_logits(probe.student, self.label)
        return RSLADTerm(self, places_of(probe.student))


class RSLADTerm(Term):
    """Feeds both answers of the student to `rslad_loss`. Items: samples, or positions."""

    def __init__(self, objective: RSLAD, places: int) -> None:
        super().__init__()
        self.objective, self._places = objective, places
        self.selection = "index" if places == 1 else "mask"

    def forward(self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock) -> Tensor:
        label = self.objective.label
        return rslad_loss(
            adversarial_logits(student, label),
            logits_of("student", student, label),
            logits_of("teacher", only(teachers), label),
            weight=at(self.objective.share, clock),
            mask=student.mask if self.selection == "mask" else None,
        )

    def items(self, batch: Batch) -> int:
        return len(batch) * self._places
