"""Cross-entropy for classes of unlike size: class-balanced weights and logit adjustment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives._logits import LogitsObjective
from decoct.objectives._numeric import (
    class_target,
    full_precision,
    item_mean,
    promote,
    refuse_unless,
    refuse_unlike_mask,
    weigh,
)
from decoct.objectives._shapes import Logits, Loss, Mask, Target
from decoct.objectives.base import Probe, Term
from decoct.training.clock import Clock


def effective_number_weights(counts: Sequence[int], *, beta: float = 0.999) -> Tensor:
    """float64 `[C]`: (1 − β) / (1 − βⁿ) for the n samples of each class, scaled to mean 1; n = 0 counts as 1.

    β = 0 gives 1 to all. Cui et al. 2019, arXiv 1901.05555, section 4; their code scales to sum C as here.

    >>> effective_number_weights([1, 1], beta=0.9).tolist()
    [1.0, 1.0]
    """
    n = torch.tensor([max(count, 1) for count in counts], dtype=torch.float64)
    weights = (1 - beta) / (1 - beta**n)
    return weights * len(weights) / weights.sum()


@full_precision
def balanced_cross_entropy(
    student: Logits,
    target: Target | Logits,
    *,
    counts: Sequence[int],
    beta: float = 0.0,
    tau: float = 0.0,
    mask: Mask | None = None,
) -> Loss:
    """Mean over items of −w_y log q_y, q = softmax(student + τ log π), π the shares of the classes in `counts`.

    Logits `[*B, C]`, class ids `[*B]` (or distributions `[*B, C]`: Σ_c t_c w_c (−log q_c)), `mask` `[*B]` bool. w from
    `effective_number_weights`; the sum is divided by the number of items, not by Σ w as `F.cross_entropy(weight=...)`
    does. `beta` 0 and `tau` 0 is the plain cross-entropy. Train with τ = 1, predict with the plain logits.

    Cui et al. 2019, arXiv 1901.05555, equation 7; Menon et al. 2021, arXiv 2007.07314, equation 10.

    >>> import torch
    >>> s, y = torch.tensor([[2.0, 0.0], [9.0, 9.0]]), torch.tensor([0, 1])
    >>> round(balanced_cross_entropy(s, y, counts=[5, 5], beta=0.9, tau=1.0).item(), 4)
    0.41
    """
    refuse_unless("balanced_cross_entropy", "beta", beta, 0 <= beta < 1, "0 to less than 1")
    classes = student.shape[-1]
    if len(counts) != classes:
        raise RecipeError(f"balanced_cross_entropy: {len(counts)} counts for {classes} classes; give one for each")
    (student,) = promote(student)
    if mask is not None:
        refuse_unlike_mask("balanced_cross_entropy", mask, student.shape[:-1])
        student = student.masked_fill(~mask.unsqueeze(-1), 0.0)
    share = torch.tensor([max(count, 1) for count in counts], dtype=torch.float64)
    prior = (tau * (share / share.sum()).log()).to(student)
    weights = effective_number_weights(counts, beta=beta).to(student)
    log_q = F.log_softmax(student + prior, dim=-1)
    if target.is_floating_point():
        return item_mean(-weigh(soft_target(target, student, mask) * weights, log_q).sum(-1), mask)
    ids = class_target("balanced_cross_entropy", student, target, mask)
    return item_mean(-weights[ids] * log_q.gather(-1, ids.unsqueeze(-1)).squeeze(-1), mask)


def soft_target(target: Tensor, student: Tensor, mask: Tensor | None) -> Tensor:
    """Distributions `[*B, C]` in the student's type, 0 where the mask is False; RecipeError for another shape."""
    if target.shape != student.shape:
        raise RecipeError(f"target {list(target.shape)} for logits {list(student.shape)}; distributions have one shape")
    target = target.to(student.dtype)
    return target if mask is None else target.masked_fill(~mask.unsqueeze(-1), 0.0)


class BalancedCrossEntropy(LogitsObjective):
    """Cross-entropy for imbalanced classes: weights by effective number, and logit adjustment; with labels.

    `beta`: near 1 gives rare classes more weight (Cui et al. 2019), 0 gives all the same; `tau`: how much of the
    classes' log shares is added to the logits in training (Menon et al. 2021), 0 for none; `counts` of each class, by
    default those of the labelled training samples.
    """

    use: ClassVar[str] = "balanced_cross_entropy"
    taught: ClassVar[bool] = False
    supervised: ClassVar[bool] = True
    mixed: ClassVar[bool] = True
    beta: float = Field(default=0.0, ge=0, lt=1)
    tau: float = Field(default=1.0, allow_inf_nan=False)
    counts: tuple[int, ...] | None = None

    def build(self, probe: Probe) -> Term:
        """The running term; RecipeError where nothing tells the classes' counts."""
        counts = self.counts or probe.counts
        if counts is None:
            raise RecipeError(f"{self.label}: the counts of the classes are not known here; give `counts`")
        return LogitsObjective.build(self.replace(counts=counts), probe)

    def value(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, mask: Tensor | None, clock: Clock
    ) -> Tensor:
        assert target is not None
        assert self.counts is not None
        return balanced_cross_entropy(student, target, counts=self.counts, beta=self.beta, tau=self.tau, mask=mask)
