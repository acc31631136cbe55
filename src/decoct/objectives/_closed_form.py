"""Divergences with their derivatives written out: what `linear_kd_loss` runs on each block of tokens.

Each function takes log p and log q `[R, V]` and q, none of which it changes, and returns the divergence of each row and
its derivative a by log q. The gradient by the logits that q is the softmax of is then a − q·Σa.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

LEAST = 0.01
"""Weights in a mixture from which one formula is accurate everywhere."""
Derivative = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def derivative(divergence: str, options: dict[str, Any]) -> Derivative | None:
    """The closed form of a divergence under its options; None where there is none."""
    if divergence == "jsd" and options.get("top_k") is not None:
        return None
    known = {name: value for name, value in options.items() if name not in ("top_k", "tail")}
    return partial(_FORMS[divergence], **known)


def forward_kl(log_p: Tensor, log_q: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Σ p (log p − log q); a = −p."""
    p = log_p.exp()
    gap = (log_p - log_q).masked_fill_(p == 0, 0.0)
    return torch.linalg.vecdot(p, gap), p.neg_()


def reverse_kl(log_p: Tensor, log_q: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Σ q (log q − log p); a = q (log q − log p), up to a multiple of q, which leaves no gradient."""
    by_log_q = (log_q - log_p).masked_fill_(q == 0, 0.0).mul_(q)
    return by_log_q.sum(-1), by_log_q


def total_variation(log_p: Tensor, log_q: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """½ Σ |p − q|; a = ½ q sign(q − p)."""
    gap = q - log_p.exp()
    return 0.5 * gap.abs().sum(-1), gap.sign_().mul_(q).mul_(0.5)


def skew_kl(log_p: Tensor, log_q: Tensor, q: Tensor, alpha: float = 0.1) -> tuple[Tensor, Tensor]:
    """KL(p ‖ αp + (1−α)q)."""
    return _teacher_to_mixture(log_p, log_q, q, 1 - alpha)


def skew_reverse_kl(log_p: Tensor, log_q: Tensor, q: Tensor, alpha: float = 0.1) -> tuple[Tensor, Tensor]:
    """KL(q ‖ (1−α)p + αq)."""
    return _student_to_mixture(log_p, log_q, q, 1 - alpha)


def jsd(log_p: Tensor, log_q: Tensor, q: Tensor, beta: float = 0.5) -> tuple[Tensor, Tensor]:
    """β·KL(p‖M) + (1−β)·KL(q‖M), M = βp + (1−β)q; the whole KL at β = 0 and 1."""
    if beta == 0:
        return forward_kl(log_p, log_q, q)
    if beta == 1:
        return reverse_kl(log_p, log_q, q)
    p, gap = log_p.exp(), _gap(log_p, log_q)
    part = _part(gap, 1 - beta)
    above, below = part + gap.clamp(min=0), part.sub_(gap.clamp(max=0))
    value = -beta * torch.linalg.vecdot(p, above) - (1 - beta) * torch.linalg.vecdot(q, below)
    share = torch.sigmoid(gap.add_(math.log((1 - beta) / beta)))
    by_log_q = below.add_(share).neg_().add_(1).mul_(q).mul_(1 - beta)
    return value, by_log_q.addcmul_(p, share, value=-beta)


def adaptive_kl(log_p: Tensor, log_q: Tensor, q: Tensor, alpha: float = 0.5) -> tuple[Tensor, Tensor]:
    """w_head · KL(p‖q) + w_tail · KL(q‖p), weights by where the two differ and not differentiated."""
    p = log_p.exp()
    gap = (p - q).abs_()
    ascending, order = torch.sort(p, dim=-1, stable=True)
    in_tail = ascending.cumsum(-1) <= alpha
    tail = torch.where(in_tail, gap.gather(-1, order), 0.0).sum(-1)
    whole = gap.sum(-1)
    share = torch.where(whole > 0, tail / torch.where(whole > 0, whole, 1.0), 0.5)
    one, by_one = forward_kl(log_p, log_q, q)
    two, by_two = reverse_kl(log_p, log_q, q)
    wide = share.unsqueeze(-1)
    return (1 - share) * one + share * two, by_one.mul_(1 - wide).add_(by_two.mul_(wide))


_FORMS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "adaptive_kl": adaptive_kl,
    "forward_kl": forward_kl,
    "jsd": jsd,
    "reverse_kl": reverse_kl,
    "skew_kl": skew_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "total_variation": total_variation,
}


def _teacher_to_mixture(log_p: Tensor, log_q: Tensor, q: Tensor, w: float) -> tuple[Tensor, Tensor]:
    """KL(p ‖ (1−w)p + wq); a = −p · wq / ((1−w)p + wq)."""
    if w == 1:
        return forward_kl(log_p, log_q, q)
    if w == 0:
        return torch.zeros_like(q[..., 0]), torch.zeros_like(q)
    p, gap = log_p.exp(), _gap(log_p, log_q)
    value = -torch.linalg.vecdot(p, _part(gap, w).add_(gap.clamp(min=0)))
    share = torch.sigmoid(gap.add_(math.log(w / (1 - w))))
    return value, share.mul_(p).neg_()


def _student_to_mixture(log_p: Tensor, log_q: Tensor, q: Tensor, w: float) -> tuple[Tensor, Tensor]:
    """KL(q ‖ (1−w)q + wp); a = q · (log q − log M + wp / M), M = (1−w)q + wp."""
    if w == 1:
        return reverse_kl(log_p, log_q, q)
    if w == 0:
        return torch.zeros_like(q[..., 0]), torch.zeros_like(q)
    gap = _gap(log_q, log_p)
    log_ratio = _part(gap, w).add_(gap.clamp(min=0))
    share = torch.sigmoid(gap.add_(math.log(w / (1 - w))))
    return -torch.linalg.vecdot(q, log_ratio), share.sub_(log_ratio).mul_(q)


def _gap(log_a: Tensor, log_b: Tensor) -> Tensor:
    """log b − log a, finite: a class that neither has is as likely for both, one that one of them lacks is very far."""
    return (log_b - log_a).nan_to_num_(nan=0.0, posinf=1e30, neginf=-1e30)


def _part(gap: Tensor, w: float) -> Tensor:
    """log((1−w) + w·exp(gap)) − max(gap, 0); exactly 0 at 0, accurate near it, no overflow far from it.

    It is log(1 + c(exp(−|gap|) − 1)), c = w below 0 and 1−w above; where c may be near 1, log((1−c) + c·exp(−|gap|))
    far from 0.
    """
    far = gap.abs()
    c: Tensor | float = w if w == 0.5 else torch.full_like(gap, 1 - w).masked_fill_(gap < 0, w)
    if min(w, 1 - w) >= LEAST:
        return far.neg_().expm1_().mul_(c).log1p_()
    away = torch.log((1 - c) + c * (-far).exp())
    near = far.clamp(max=1).neg_().expm1_().mul_(c).log1p_()
    return torch.where(far <= 1, near, away)
