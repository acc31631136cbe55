"""Cross-entropy with the labels: the supervised term of classifiers."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives._logits import LogitsObjective
from decoct.objectives._numeric import (
    class_ids,
    full_precision,
    item_mean,
    promote,
    refuse_outside,
    refuse_unless,
    refuse_unlike_mask,
    shape,
    weigh,
)
from decoct.objectives._shapes import Logits, Loss, Mask, Target
from decoct.objectives._sweep import Hard
from decoct.training.clock import Clock

NO_ID = -(2**61) - 1
"""torch leaves the items of one id out; this is none that labels have, so that -100 is refused as any other."""


@full_precision
def cross_entropy(
    student: Logits, target: Target | Logits, *, label_smoothing: float = 0.0, mask: Mask | None = None
) -> Loss:
    """Mean over items of −log q(target), q = softmax(student).

    Logits `[*B, C]`, class ids `[*B]` or distributions `[*B, C]` (−Σ_c t_c log q_c),
    `mask` `[*B]` bool; in nats. `label_smoothing` ε: the target distribution is
    (1−ε)·one-hot + ε/C, as in torch. Equals `F.cross_entropy` for `[B, C]`; the class axis is last here, second
    there. RecipeError: a target outside the classes that the mask keeps.

    >>> import torch
    >>> round(cross_entropy(torch.tensor([[2.0, 0.0], [9.0, 9.0]]), torch.tensor([0, 1])).item(), 4)
    0.41
    """
    refuse_unless("cross_entropy", "label_smoothing", label_smoothing, 0 <= label_smoothing <= 1, "0 to 1")
    (student,) = promote(student)
    if mask is not None:
        refuse_unlike_mask("cross_entropy", mask, student.shape[:-1])
        student = student.masked_fill(~mask.unsqueeze(-1), 0.0)
    if target.is_floating_point():
        return _with_distributions(student, target, label_smoothing, mask)
    target = class_ids("cross_entropy", student, target, mask)
    if mask is None and target.numel():
        return _with_ids(student, target, label_smoothing, "mean")
    return item_mean(_with_ids(student, target, label_smoothing, "none").reshape(target.shape), mask)


def _with_ids(student: Tensor, target: Tensor, label_smoothing: float, reduction: str) -> Tensor:
    """torch's cross-entropy, whose kernels check the ids on CPU and CUDA: what they refuse is then put into words."""
    if target.device.type not in ("cpu", "cuda"):
        refuse_outside("cross_entropy", student, target)
    rows, ids = student, target
    if student.ndim != 2:
        rows, ids = student.reshape(-1, student.shape[-1]), target.reshape(-1)
    try:
        return F.cross_entropy(rows, ids, label_smoothing=label_smoothing, reduction=reduction, ignore_index=NO_ID)
    except IndexError:
        refuse_outside("cross_entropy", student, target)
        raise


def _with_distributions(student: Tensor, target: Tensor, label_smoothing: float, mask: Tensor | None) -> Tensor:
    if target.shape != student.shape:
        raise RecipeError(f"cross_entropy: student {shape(student)} and target {shape(target)}; ids are [*B]")
    target = target.to(student.dtype)
    if mask is not None:
        target = target.masked_fill(~mask.unsqueeze(-1), 0.0)
    target = (1 - label_smoothing) * target + label_smoothing / student.shape[-1]
    return item_mean(-weigh(target, F.log_softmax(student, dim=-1)).sum(-1), mask)


class CrossEntropy(LogitsObjective):
    """Cross-entropy with the labels, for classifiers; unlabelled samples do not count.

    `label_smoothing`: the probability that is spread evenly over all classes.
    """

    use: ClassVar[str] = "cross_entropy"
    taught: ClassVar[bool] = False
    supervised: ClassVar[bool] = True
    mixed: ClassVar[bool] = True
    label_smoothing: float = Field(default=0.0, ge=0, le=1)

    def swept(self, clock: Clock) -> Hard:
        return Hard(self.label_smoothing)

    def value(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, mask: Tensor | None, clock: Clock
    ) -> Tensor:
        assert target is not None
        return cross_entropy(student, target, label_smoothing=self.label_smoothing, mask=mask)
