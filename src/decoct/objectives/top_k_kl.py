"""Forward Kullback-Leibler divergence from a teacher of which only the largest probabilities are known."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives._numeric import (
    full_precision,
    item_mean,
    promote,
    refuse_temperature,
    refuse_unlike_mask,
    shape,
    weigh,
)
from decoct.objectives._shapes import Logits, Loss, Mask
from decoct.outputs import TopK


@full_precision
def top_k_kl_loss(student: Logits, targets: TopK, *, temperature: float = 1.0, mask: Mask | None = None) -> Loss:
    """Mean over items of KL(p‖q), p the kept part of the teacher's distribution and its tail, without T².

    Logits `[*B, C]`, class axis last; `targets` of the same items and C classes; `mask` `[*B]` bool; in nats. p at
    temperature T: log p_j / T of the kept classes and `targets.log_rest(T)` of the others together, divided by their
    common sum; nothing is renormalised over the kept classes alone. q = softmax(student/T). By `targets.tail`:
    "bucket": KL over k + 1 events, the k classes and all the others as one, which is at most the whole KL;
    "uniform": each class of the tail has an equal part (of those that the student does not rule out with -inf);
    "sample", at T = 1 alone: the drawn classes stand for the tail, and the gradient is an unbiased estimate of that of
    the whole KL. So is the value where `drawn_log_probs` are known; otherwise it exceeds the KL on average by a
    constant, the tail's mass times the entropy within the tail. 0 where q is what `targets` describe.
    The hotter, the more of p lies in the tail, of whose inside nothing is known: with 64 of 32,000 classes the
    gradient's error is a few percent at T = 1 and nearly all of it at T = 4 (benchmarks/results/tails.md).
    RecipeError: other shapes or classes; a temperature at which the tail is not known.

    >>> s = torch.tensor([[2.0, 0.0, 0.0]])
    >>> p = TopK(torch.tensor([[0]]), torch.tensor([[0.5]]).log(), torch.tensor([[0.5]]).log(), classes=3)
    >>> round(top_k_kl_loss(s, p).item(), 4)
    0.1998
    >>> top_k_kl_loss(p.spread(), p).item()
    0.0
    """
    p, log_p, log_q = described(student, targets, temperature, mask, "top_k_kl_loss")
    return item_mean(weigh(p, log_p - log_q).sum(-1), mask)


@full_precision
def top_k_cross_entropy(student: Logits, targets: TopK, *, temperature: float = 1.0, mask: Mask | None = None) -> Loss:
    """Mean over items of −Σ p log q for the events that `top_k_kl_loss` compares; it has the same gradient.

    With the tail "sample" an unbiased estimate of `soft_cross_entropy`. Not 0 at equality: the entropy of p.

    >>> p = TopK(torch.tensor([[0]]), torch.tensor([[0.5]]).log(), torch.tensor([[0.5]]).log(), classes=2)
    >>> round(top_k_cross_entropy(torch.zeros(1, 2), p).item(), 4)
    0.6931
    """
    p, _, log_q = described(student, targets, temperature, mask, "top_k_cross_entropy")
    return item_mean(-weigh(p, log_q).sum(-1), mask)


def described(
    student: Tensor, targets: TopK, temperature: float, mask: Tensor | None, loss: str
) -> tuple[Tensor, Tensor, Tensor]:
    """p, log p and log q `[*B, E]` of the E events that the targets tell apart; Σ p = 1, also where masked."""
    student, targets = _checked(student, targets, temperature, mask, loss)
    logits = student / temperature if temperature != 1 else student
    inside = targets.log_probs.to(logits.dtype) / temperature
    rest = targets.log_rest(temperature).to(logits.dtype).unsqueeze(-1)
    whole = torch.cat([inside, rest], -1).logsumexp(-1, keepdim=True)
    inside, rest = inside - whole, rest - whole
    if targets.tail == "bucket":
        log_p = torch.cat([inside, rest], -1)
        return log_p.exp(), log_p, _coarse(logits, targets.ids)
    total = logits.logsumexp(-1, keepdim=True)
    kept = logits.gather(-1, targets.ids) - total
    if targets.tail == "uniform":
        others, mean = _tail_mean(logits, targets.ids)
        log_p = torch.cat([inside, rest - others.clamp(min=1).log()], -1)
        return torch.cat([inside, rest], -1).exp(), log_p, torch.cat([kept, mean - total], -1)
    assert targets.drawn is not None
    count = targets.drawn.shape[-1]
    drawn = rest.expand(*rest.shape[:-1], count)
    p = torch.cat([inside.exp(), drawn.exp() / count], -1)
    if targets.drawn_log_probs is not None:
        drawn = targets.drawn_log_probs.to(logits.dtype) - whole
    return p, torch.cat([inside, drawn], -1), torch.cat([kept, logits.gather(-1, targets.drawn) - total], -1)


def _coarse(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities of the kept classes and of all the others together, `[*B, k + 1]`; no 1 − Σ."""
    others = logits.scatter(-1, ids, -torch.inf)
    left = (others != -torch.inf).any(-1, keepdim=True)
    bucket = others.masked_fill(~left, 0.0).logsumexp(-1, keepdim=True).masked_fill(~left, -torch.inf)
    return torch.log_softmax(torch.cat([logits.gather(-1, ids), bucket], -1), -1)


def _tail_mean(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """How many classes of the tail the student does not rule out, and the mean of their logits; both `[*B, 1]`."""
    others = logits.scatter(-1, ids, -torch.inf)
    out = others == -torch.inf
    count = (~out).sum(-1, keepdim=True).to(logits.dtype)
    return count, others.masked_fill(out, 0.0).sum(-1, keepdim=True) / count.clamp(min=1)


def _checked(student: Tensor, targets: TopK, temperature: float, mask: Tensor | None, loss: str) -> tuple[Tensor, TopK]:
    """Logits cast up, and the targets; items that do not count are made harmless on both sides."""
    refuse_temperature(loss, temperature)
    if student.ndim == 0 or student.shape[-1] != targets.classes:
        raise RecipeError(f"{loss}: student {shape(student)} and targets for {targets.classes} classes; [*B, C]")
    if targets.ids.shape[:-1] != student.shape[:-1]:
        raise RecipeError(f"{loss}: student {shape(student)} and ids {shape(targets.ids)}; the items must be the same")
    targets = without_tail(targets)
    if targets.tail == "sample" and targets.drawn is None:
        raise RecipeError(f"{loss}: the tail is 'sample', and there are no drawn classes; label again")
    if targets.tail == "sample" and not math.isclose(temperature, 1.0):
        raise RecipeError(
            f"{loss}: temperature is {temperature:g}, and the teacher's tail was kept as random draws at temperature "
            "1; allowed: 1. For other temperatures label again with tail: bucket or uniform"
        )
    (student,) = promote(student)
    if mask is not None:
        refuse_unlike_mask(loss, mask, student.shape[:-1])
        out = ~mask.unsqueeze(-1)
        student = student.masked_fill(out, 0.0)
        targets = targets.each(lambda each: each.masked_fill(out, 0))
    _refuse_outside(loss, targets)
    return student, targets.each(Tensor.detach)


def without_tail(targets: TopK) -> TopK:
    """The same where some classes are not kept; where all are, an empty bucket is their tail, however it was kept."""
    return targets if targets.ids.shape[-1] < targets.classes else replace(targets, tail="bucket", drawn=None)


def _refuse_outside(loss: str, targets: TopK) -> None:
    """RecipeError for ids that are no class; on an accelerator a device-side assertion, so that no step waits."""
    for ids in (targets.ids, targets.drawn):
        if ids is None or not ids.numel():
            continue
        inside = ((ids >= 0) & (ids < targets.classes)).all()
        if ids.device.type != "cpu":
            torch._assert_async(inside, f"{loss}: a kept class lies outside the classes")
        elif not inside:
            raise RecipeError(
                f"{loss}: kept classes from {int(ids.min())} to {int(ids.max())}, and there are {targets.classes}; "
                "the targets are of another model or are damaged"
            )
