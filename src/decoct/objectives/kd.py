"""Hinton's knowledge distillation: the student's softened distribution drawn to the teacher's."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives import _divergence
from decoct.objectives._logits import Temperature, TopKObjective
from decoct.objectives._numeric import full_precision, logit_pair
from decoct.objectives._shapes import Logits, Loss, Mask
from decoct.objectives._sweep import Soft
from decoct.objectives.standardize import standardize_logits
from decoct.objectives.top_k_kl import top_k_kl_loss
from decoct.outputs import TopK
from decoct.training.clock import Clock
from decoct.training.schedules import at


@full_precision
def kd_loss(student: Logits, teacher: Logits, *, temperature: float = 4.0, mask: Mask | None = None) -> Loss:
    """T² times the mean over items of KL(p‖q), p = softmax(teacher/T), q = softmax(student/T).

    Logits `[*B, C]`, class axis last; `mask` `[*B]` bool, True where an item counts; in nats. Sum over classes, mean
    over items. 0 at student == teacher. Convention: equals `F.kl_div(log q, p, reduction="batchmean") * T * T` for
    `[B, C]`. Peers: without T² divide by T²; `reduction="mean"` (mean over classes too) is this divided by C;
    `batchmean` on dense maps `[B, C, H, W]` is this times H·W; a cross-entropy with soft labels is larger by the
    teacher's entropy and has the same gradient. RecipeError: shapes that differ, temperature not above 0.

    Hinton et al. 2015, arXiv 1503.02531, section 2.

    >>> import torch
    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> round(kd_loss(logits, -logits, temperature=2.0).item(), 4)
    1.1692
    >>> kd_loss(logits, logits).item()
    0.0
    """
    student, teacher = logit_pair("kd_loss", student, teacher, mask, temperature)
    return _divergence.forward_kl_mean(
        "kd_loss", student, teacher, temperature=temperature, mask=mask, factor=temperature**2
    )


class KD(TopKObjective):
    """Draws the student's softened class distribution to the teacher's (Hinton 2015).

    `temperature` a number or schedule; `standardize` divides both sides' logits by their own spread first (Sun 2024).
    The gradient's scale does not depend on the temperature (factor T²). For a teacher of which only the largest
    probabilities are kept choose a temperature near 1: see `top_k_kl_loss`.
    """

    use: ClassVar[str] = "kd"
    temperature: Temperature = 4.0
    standardize: bool = False

    def swept(self, clock: Clock) -> Soft | None:
        temperature = at(self.temperature, clock)
        return None if self.standardize else Soft("forward_kl", temperature, factor=temperature**2)

    def value(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, mask: Tensor | None, clock: Clock
    ) -> Tensor:
        if self.standardize:
            if mask is not None:
                out = ~mask.unsqueeze(-1)
                student, teacher = student.masked_fill(out, 0.0), teacher.masked_fill(out, 0.0)
            student, teacher = standardize_logits(student), standardize_logits(teacher)
        return kd_loss(student, teacher, temperature=at(self.temperature, clock), mask=mask)

    def value_of_top_k(self, student: Tensor, targets: TopK, mask: Tensor | None, clock: Clock) -> Tensor:
        if self.standardize:
            raise RecipeError(
                f"{self.label}: standardize is true, and the teacher keeps only the {targets.ids.shape[-1]} largest of "
                f"{targets.classes} probabilities; set it to false, or label with all classes"
            )
        temperature = at(self.temperature, clock)
        return temperature**2 * top_k_kl_loss(student, targets, temperature=temperature, mask=mask)
