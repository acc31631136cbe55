"""Divergences between two rows of logits, token by token: what the sequence losses and `linear_kd_loss` share.

Each function takes student and teacher logits `[N, V]` (float32 at least, teacher detached) and returns `[N]`; one
takes the mean too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives._numeric import item_mean, kl_rows, log_softmax, refuse_unless, weigh, weighed


def forward_kl(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL(p‖q)."""
    return kl_rows(log_softmax(teacher, temperature), log_softmax(student, temperature))


def forward_kl_mean(
    loss: str, student: Tensor, teacher: Tensor, *, temperature: float, mask: Tensor | None, factor: float = 1.0
) -> Tensor:
    """factor · mean over items of `forward_kl`, in few kernels: its gradient is written out.

    Logits `[*B, V]`, the rest as above. RecipeError: a temperature that takes a gradient, of which none would come.
    """
    if isinstance(temperature, Tensor) and temperature.requires_grad:
        raise RecipeError(f"{loss}: temperature takes a gradient; allowed: a number; ctkd_loss learns temperatures")
    if mask is not None or weighed() or not student.numel():
        return item_mean(_ForwardKL.apply(student, teacher, temperature, factor, -1), mask)
    return _ForwardKL.apply(student, teacher, temperature, factor / student.shape[:-1].numel(), None)


class _ForwardKL(torch.autograd.Function):
    """factor · KL(p‖q), summed over `axis` -1 (the classes) or None (all). Its derivative is factor · (q − p) / T."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, temperature: float, factor: float, axis: int | None
    ) -> Tensor:
        log_q, log_p = log_softmax(student, temperature), log_softmax(teacher, temperature)
        p = log_p.exp()
        gap = log_p.sub_(log_q).masked_fill_(p == 0, 0.0)
        ctx.save_for_backward(student, log_q.exp_().sub_(p))
        ctx.temperature, ctx.factor = temperature, factor
        return gap.mul_(p).sum(axis).mul_(factor)

    @staticmethod
    def backward(ctx: Any, by_value: Tensor) -> tuple[Tensor | None, ...]:
        student, difference = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is asked for: that of the difference is the one of q
            q = log_softmax(student, ctx.temperature).exp()
            difference = difference + (q - q.detach())
        scale = by_value * (ctx.factor / ctx.temperature)
        return difference * (scale.unsqueeze(-1) if scale.ndim else scale), None, None, None, None


def reverse_kl(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL(q‖p)."""
    return kl_rows(log_softmax(student, temperature), log_softmax(teacher, temperature))


def skew_kl(student: Tensor, teacher: Tensor, *, alpha: float = 0.1, temperature: float = 1.0) -> Tensor:
    """KL(p ‖ αp + (1−α)q)."""
    refuse_unless("skew_kl", "alpha", alpha, 0 <= alpha <= 1, "0 to 1")
    return _kl_to_mixture(log_softmax(teacher, temperature), log_softmax(student, temperature), 1 - alpha)


def skew_reverse_kl(student: Tensor, teacher: Tensor, *, alpha: float = 0.1, temperature: float = 1.0) -> Tensor:
    """KL(q ‖ (1−α)p + αq)."""
    refuse_unless("skew_reverse_kl", "alpha", alpha, 0 <= alpha <= 1, "0 to 1")
    return _kl_to_mixture(log_softmax(student, temperature), log_softmax(teacher, temperature), 1 - alpha)


def total_variation(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """½ Σ|p − q|."""
    p, q = log_softmax(teacher, temperature).exp(), log_softmax(student, temperature).exp()
    return 0.5 * (p - q).abs().sum(-1)


def adaptive_kl(student: Tensor, teacher: Tensor, *, alpha: float = 0.5, temperature: float = 1.0) -> Tensor:
    """w_head · KL(p‖q) + w_tail · KL(q‖p), weights by where the two differ."""
    refuse_unless("adaptive_kl", "alpha", alpha, 0 <= alpha <= 1, "0 to 1")
    log_p, log_q = log_softmax(teacher, temperature), log_softmax(student, temperature)
    p = log_p.exp()
    gap = (p - log_q.detach().exp()).abs()
    ascending, order = torch.sort(p, dim=-1, stable=True)
    in_tail = ascending.cumsum(-1) <= alpha
    tail = torch.where(in_tail, gap.gather(-1, order), 0.0).sum(-1)
    whole = gap.sum(-1)
    share = torch.where(whole > 0, tail / torch.where(whole > 0, whole, 1.0), 0.5)
    return (1 - share) * kl_rows(log_p, log_q) + share * kl_rows(log_q, log_p)


def jsd(
    student: Tensor,
    teacher: Tensor,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    top_k: int | None = None,
    tail: bool = True,
) -> Tensor:
    """β·KL(p‖M) + (1−β)·KL(q‖M) with M = βp + (1−β)q; the full KL at β = 0 and 1; perhaps on a support of top k."""
    refuse_unless("jsd", "beta", beta, 0 <= beta <= 1, "0 to 1")
    if top_k is not None:
        refuse_unless("jsd", "top_k", top_k, top_k >= 1, "1 or more, or None for all")
    if top_k is None or top_k >= student.shape[-1]:
        log_p, log_q = log_softmax(teacher, temperature), log_softmax(student, temperature)
    else:
        support, used = _support(student.detach(), teacher, beta, top_k)
        log_p = _on_support(teacher / temperature, support, used, tail)
        log_q = _on_support(student / temperature, support, used, tail)
    if beta == 0:
        return kl_rows(log_p, log_q)
    if beta == 1:
        return kl_rows(log_q, log_p)
    return beta * _kl_to_mixture(log_p, log_q, 1 - beta) + (1 - beta) * _kl_to_mixture(log_q, log_p, beta)


def _kl_to_mixture(log_a: Tensor, log_b: Tensor, w: float) -> Tensor:
    """KL(a ‖ (1−w)a + wb) = −Σ a·log((1−w) + w·b/a); exactly 0 where a = b, accurate where they are near."""
    if w == 1:
        return kl_rows(log_a, log_b)
    if w == 0:
        return 0 * (log_a.exp() + log_b.exp()).sum(-1)
    dead = log_a == -torch.inf
    gap = log_b.masked_fill(dead, 0.0) - log_a.masked_fill(dead, 0.0)
    below, above = gap.clamp(max=-1), gap.clamp(min=1)
    near = torch.log1p(w * torch.expm1(gap.clamp(-1, 1)))
    low = torch.log((1 - w) + w * below.exp())
    high = above + torch.log(w + (1 - w) * (-above).exp())
    log_ratio = torch.where(gap.abs() <= 1, near, torch.where(gap < 0, low, high))
    return -weigh(log_a.exp(), log_ratio).sum(-1)


def _support(student: Tensor, teacher: Tensor, beta: float, k: int) -> tuple[Tensor, Tensor]:
    """Class ids `[N, k or 2k]` of the support, and which of these columns count (a class counts once)."""
    theirs, own = teacher.topk(k, dim=-1).indices, student.topk(k, dim=-1).indices
    if beta == 0:
        return theirs, torch.ones_like(theirs, dtype=torch.bool)
    if beta == 1:
        return own, torch.ones_like(own, dtype=torch.bool)
    both = torch.cat([theirs, own], -1).sort(-1).values
    first = torch.ones_like(both, dtype=torch.bool)
    first[..., 1:] = both[..., 1:] != both[..., :-1]
    return both, first


def _on_support(logits: Tensor, support: Tensor, used: Tensor, tail: bool) -> Tensor:
    """Log probabilities on the support: with one bucket for all the rest, or renormalised."""
    inside = logits.gather(-1, support).masked_fill(~used, -torch.inf)
    if not tail:
        return F.log_softmax(inside, -1)
    rest = logits.scatter(-1, support, -torch.inf)
    left = (rest != -torch.inf).any(-1, keepdim=True)
    bucket = rest.masked_fill(~left, 0.0).logsumexp(-1, keepdim=True).masked_fill(~left, -torch.inf)
    return F.log_softmax(torch.cat([inside, bucket], -1), -1)


DIVERGENCES: dict[str, Callable[..., Tensor]] = {
    "adaptive_kl": adaptive_kl,
    "forward_kl": forward_kl,
    "jsd": jsd,
    "reverse_kl": reverse_kl,
    "skew_kl": skew_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "total_variation": total_variation,
}
"""By the names of their objectives."""
