"""Distillation of predicted numbers, bounded by the teacher's own error."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives._logits import LogitsObjective
from decoct.objectives._numeric import element_mean, full_precision, promote, refuse_unless, refuse_unlike, shape
from decoct.objectives._shapes import AnyMask, Loss, Same
from decoct.objectives.base import Suits
from decoct.training.clock import Clock


@full_precision
def regression_kd_loss(
    student: Same, teacher: Same, target: Same, *, margin: float = 0.0, mask: AnyMask | None = None
) -> Loss:
    """Teacher-bounded regression plus the squared distance to the teacher.

    Predictions and target of one shape `[*B, D]`; `mask` bool over leading axes. With s, t, y elementwise: mean over
    all elements of (s−y)² where (s−y)² + margin > (t−y)², else 0; plus the mean of (s−t)². At student == teacher it
    is 0 for margin 0, and the student's own squared error otherwise. `margin` in squared units of the target. Peers:
    the paper weighs the bounded part by 0.5 against a smooth-L1 loss to the target and has no distance to the teacher.

    Chen et al. 2017, "Learning Efficient Object Detection Models with Knowledge Distillation", equation 5. The
    distance to the teacher is ours.

    >>> import torch
    >>> s, t, y = torch.tensor([[3.0]]), torch.tensor([[1.0]]), torch.tensor([[0.0]])
    >>> regression_kd_loss(s, t, y).item(), regression_kd_loss(t, t, y).item()
    (13.0, 0.0)
    """
    refuse_unless("regression_kd_loss", "margin", margin, 0 <= margin < float("inf"), "0 or more")
    refuse_unlike("regression_kd_loss", student, teacher)
    if target.shape != student.shape:
        raise RecipeError(f"regression_kd_loss: student {shape(student)} and target {shape(target)}; must be equal")
    student, teacher, target = promote(student, teacher, target)
    teacher, target = teacher.detach(), target.detach()
    if mask is not None:
        if mask.dtype != torch.bool or mask.shape != student.shape[: mask.ndim]:
            raise RecipeError(f"regression_kd_loss: mask {mask.dtype} {shape(mask)} for {shape(student)}; bool [*B]")
        out = ~mask.reshape(mask.shape + (1,) * (student.ndim - mask.ndim))
        student, teacher, target = (each.masked_fill(out, 0.0) for each in (student, teacher, target))
    own, theirs = (student - target).square(), (teacher - target).square()
    bounded = torch.where(own + margin > theirs, own, 0.0)
    return element_mean(bounded + (student - teacher).square(), mask)


class RegressionKD(LogitsObjective):
    """Pulls predictions to the target while the student errs more than the teacher, and to the teacher (Chen 2017).

    `margin`: how much better than the teacher, in squared units of the target, the student must be before the pull to
    the target ends.
    """

    use: ClassVar[str] = "regression_kd"
    classes: ClassVar[bool] = False
    supervised: ClassVar[bool] = True
    margin: float = Field(default=0.0, ge=0)

    def suits(self) -> Suits:
        """Numbers, since it takes the distance to the target."""
        return "numbers"

    def value(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, mask: Tensor | None, clock: Clock
    ) -> Tensor:
        assert target is not None
        if target.numel() == student.numel():
            target = target.reshape(student.shape)
        return regression_kd_loss(student, teacher, target, margin=self.margin, mask=mask)
