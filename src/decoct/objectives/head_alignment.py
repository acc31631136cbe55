"""Head alignment: each attention head of the teacher against a learned mean of the student's heads."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives._features import PairedObjective, PairNetwork
from decoct.objectives._maps import feature_pair
from decoct.objectives._numeric import full_precision, item_mean, refuse_unlike_mask, shape, weigh
from decoct.objectives._shapes import Attention, HeadWeights, Loss, OtherAttention, Places
from decoct.objectives.adapters import Adapter, Heads
from decoct.objectives.base import Probe
from decoct.outputs import Batch
from decoct.training.clock import Clock

SMALLEST = 1e-12
"""A probability below which the student's is not taken, so that the logarithm stays finite."""


@full_precision
def head_alignment_loss(
    student: Attention, teacher: OtherAttention, weight: HeadWeights, *, mask: Places | None = None
) -> Loss:
    """Mean over the teacher's heads and kept rows of KL(teacher head ‖ Σ_h weight · student head h).

    Attention probabilities `[B, H_s, L, L]` and `[B, H_t, L, L]`, `weight` `[H_t, H_s]` with rows that sum to 1, with
    gradient; `mask` `[B, L]` bool: columns not kept are left out and the rest renormalised. 0 at student == teacher
    with the identity as weight. Probabilities of the student are taken as 1e-12 at least. The definition is ours;
    it lets numbers of heads differ where TinyBERT's attention loss (arXiv 1909.10351, equation 7) needs them equal.

    >>> x = torch.softmax(torch.randn(1, 2, 3, 3), -1)
    >>> abs(head_alignment_loss(x, x.flip(1), torch.eye(2).flip(0)).item()) < 1e-6
    True
    """
    if student.ndim != 4 or teacher.ndim != 4 or student.shape[2:] != teacher.shape[2:] or len(student) != len(teacher):
        raise RecipeError(
            f"head_alignment_loss: student {shape(student)} and teacher {shape(teacher)}; allowed: [B, H, L, L] with "
            f"equal B and L"
        )
    if weight.shape != (teacher.shape[1], student.shape[1]):
        raise RecipeError(
            f"head_alignment_loss: weight {shape(weight)}, student {shape(student)}, teacher {shape(teacher)}; weight "
            f"must be [teacher heads, student heads]"
        )
    s, t = feature_pair("head_alignment_loss", student, teacher)
    rows = None
    if mask is not None:
        refuse_unlike_mask("head_alignment_loss", mask, student.shape[:1] + student.shape[2:3])
        s, t = _kept(s, mask), _kept(t, mask)
        rows = mask.unsqueeze(1).expand(t.shape[:3])
    mixed = torch.einsum("th,bhij->btij", weight.to(s.dtype), s)
    gap = t.clamp(min=SMALLEST).log() - mixed.clamp(min=SMALLEST).log()
    return item_mean(weigh(t, gap).sum(-1), rows)


def _kept(x: Tensor, mask: Tensor) -> Tensor:
    """Rows over the columns kept, which sum to 1 again; rows not kept are 0."""
    x = x.masked_fill(~(mask[:, None, :, None] & mask[:, None, None, :]), 0.0)
    return x / x.sum(-1, keepdim=True).clamp(min=SMALLEST)


class HeadAlignment(PairedObjective):
    """Matches each attention head of the teacher by a learned mean of the student's heads; their numbers may differ.

    `layers`: attention probabilities `[B, H, L, L]`, after the softmax; for scores before it take attention_mse.
    """

    use: ClassVar[str] = "head_alignment"
    auto: ClassVar[Literal["stages", "embedding", "none"]] = "none"
    positions: ClassVar[Literal["all", "kept", "pairs kept"]] = "kept"
    adapter: Adapter = "none"

    def network(self, student: Tensor, teacher: Tensor, probe: Probe, path: str) -> PairNetwork:
        if student.ndim != 4 or teacher.ndim != 4:
            raise RecipeError("head_alignment: attention probabilities are [B, H, L, L]")
        return Aligned(student.shape[1], teacher.shape[1])


class Aligned(PairNetwork):
    """The learned weights of the heads."""

    def __init__(self, heads: int, wanted: int) -> None:
        super().__init__()
        self.heads = Heads(heads, wanted)

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None, batch: Batch, clock: Clock) -> Tensor:
        return head_alignment_loss(student, teacher, self.heads.weight, mask=mask)
