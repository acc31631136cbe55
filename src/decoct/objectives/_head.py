"""Head, Labels and Sweep: logits of a few tokens at a time, their loss, and the gradients taken on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives._closed_form import Derivative
from decoct.objectives._numeric import log_softmax, weigh
from decoct.objectives.top_k_kl import described
from decoct.outputs import Head, TopK

BLOCK = 1 << 18
"""Logits worked on at once on the CPU: 1 MiB in float32, so that a block stays in the cache between passes."""


CHUNK_BYTES = (80 << 20, 1 << 30)
"""Room for one chunk's logits and what is made of them: 80 MiB on the CPU, 1 GiB on an accelerator."""
ENOUGH = 128
"""Tokens of a chunk on the CPU from which products get no faster."""


@dataclass(frozen=True)
class Labels:
    """The hard cross-entropy of the same logits, at temperature 1.

    `target` class ids `[*B]`, `ignore_index` where there is none; `weight` of its mean in the total; `smoothing` ε: the
    target distribution is (1−ε)·one-hot + ε/V, over the V classes that are not at -inf.
    """

    target: Tensor
    weight: float = 1.0
    ignore_index: int = -100
    smoothing: float = 0.0


@dataclass(frozen=True)
class Side:
    """Hidden states of the tokens kept `[N, D]` and their head, both in the type that the products are taken in."""

    hidden: Tensor
    head: Head

    def logits(self, part: slice, out: Tensor, product: Tensor) -> Tensor:
        """The logits of some tokens, in `out` `[n, V]`; `product` (perhaps `out`) takes hidden · weightᵀ."""
        hidden, head = self.hidden[part], self.head
        if head.bias is None:
            torch.mm(hidden, head.weight.T, out=product)
        else:
            torch.addmm(head.bias, hidden, head.weight.T, out=product)
        if product is not out:
            out.copy_(product)
        if head.scale != 1:
            out.mul_(head.scale)
        if head.softcap is not None:
            out.div_(head.softcap).tanh_().mul_(head.softcap)
            if head.bias is not None:
                out.add_(torch.where(head.bias == -torch.inf, -torch.inf, 0.0))
        return out


def side_of(hidden: Tensor, head: Head, dtype: torch.dtype) -> Side:
    """Hidden states `[N, D]` and their head in the type of the products, without gradient."""
    bias = None if head.bias is None else head.bias.detach().to(dtype)
    return Side(hidden.detach().to(dtype), replace(head, weight=head.weight.detach().to(dtype), bias=bias))


Online = Side | Callable[[slice], Tensor]
"""Where the teacher's logits come from: hidden states and a head, or a function of the tokens asked for."""


def refuse_other_types(
    loss: str, student_hidden: Any, student_weight: Any, teacher: Any, teacher_weight: Any, *, mask: Any, labels: Any
) -> None:
    """RecipeError where an argument is no tensor, or nothing that may stand in its place."""
    head = "a tensor [V, D] or Head(weight, bias)"
    target = labels.target if isinstance(labels, Labels) else None
    for name, value, fits, allowed in (
        ("student_hidden", student_hidden, isinstance(student_hidden, Tensor), "a tensor [*B, D]"),
        ("student_weight", student_weight, isinstance(student_weight, Tensor | Head), head),
        (
            "teacher_hidden",
            teacher,
            isinstance(teacher, Tensor | TopK) or callable(teacher),
            "a tensor [*B, D], a TopK, or a function that gives the logits [n, V] of a slice of the tokens",
        ),
        ("teacher_weight", teacher_weight, isinstance(teacher_weight, Tensor | Head | None), head),
        ("mask", mask, isinstance(mask, Tensor | None), "a bool tensor [*B], or None"),
        ("labels", labels, isinstance(labels, Labels | None), "a tensor of class ids [*B], or Labels(target, weight)"),
        ("labels.target", target, isinstance(target, Tensor | None), "a tensor of class ids [*B]"),
    ):
        if not fits:
            raise RecipeError(f"{loss}: {name} is a {type(value).__name__}; give {allowed}")


@dataclass(frozen=True)
class Recipe:
    """What is computed of each block of logits.

    `labels` of the tokens kept, `[N]`; `cross_entropy` factor of each token's cross-entropy beside its divergence
    `[N]`, 0 where it has no label.
    """

    divergence: str
    temperature: float
    derivative: Derivative | None
    plain: Callable[[Tensor, Tensor], Tensor]
    labels: Labels | None = None
    cross_entropy: Tensor | None = None
    triton: bool = False

    def block(self, student: Tensor, teacher: Tensor | TopK, rows: slice, gradient: bool) -> tuple[Tensor, Tensor]:
        """Sums over the block of divergence and weighed cross-entropy; its gradient takes the place of `student`."""
        if self.triton:
            assert isinstance(teacher, Tensor)
            return self._fused(student, teacher, rows, gradient)
        if not gradient:
            return self._value(student, teacher), self._hard(student, None, None, rows)
        value, by_logits, q = self._soft(student, teacher)
        hard = self._hard(student, q if self.temperature == 1 else None, by_logits, rows)
        student.copy_(by_logits)
        return value.sum(), hard

    def _soft(self, student: Tensor, teacher: Tensor | TopK) -> tuple[Tensor, Tensor, Tensor | None]:
        """The divergence of each row, its gradient by the logits, and q where it is still at hand."""
        if self.divergence == "forward_kl" and isinstance(teacher, Tensor):
            return forward_kl(student, teacher, self.temperature)
        log_q = log_softmax(student, self.temperature)
        q = log_q.exp()
        if isinstance(teacher, TopK):
            return *top_k(student, log_q, q, teacher, self.temperature), None
        if self.derivative is None:
            return *self._by_autograd(student, teacher), q
        value, by_log_q = self.derivative(log_softmax(teacher, self.temperature), log_q, q)
        by_logits = by_log_q.addcmul_(q, by_log_q.sum(-1, keepdim=True), value=-1)
        return value, by_logits if self.temperature == 1 else by_logits.div_(self.temperature), q

    def _value(self, student: Tensor, teacher: Tensor | TopK) -> Tensor:
        if isinstance(teacher, Tensor):
            return self.plain(student, teacher).sum()
        p, log_p, log_q = described(student, teacher, self.temperature, None, "linear_kd_loss")
        return weigh(p, log_p - log_q).sum()

    def _by_autograd(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = student.detach().requires_grad_()
            value = self.plain(leaf, teacher)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), gradient

    def _hard(self, student: Tensor, q: Tensor | None, by_logits: Tensor | None, rows: slice) -> Tensor:
        """The weighed cross-entropy of the block, its gradient added to `by_logits`; `q`: softmax(student)."""
        if self.labels is None:
            return student.new_zeros(())
        assert self.cross_entropy is not None
        q = torch.softmax(student, -1) if q is None else q
        smoothing, factor = self.labels.smoothing, self.cross_entropy[rows].unsqueeze(-1)
        ids, log_sum = self.labels.target[rows].unsqueeze(-1), log_sum_of(student, q).unsqueeze(-1)
        likely = (student.gather(-1, ids) - log_sum) * (1 - smoothing)
        if by_logits is not None:
            by_logits.addcmul_(q, factor).scatter_add_(-1, ids, factor * (smoothing - 1))
        if smoothing:
            alive = student != -torch.inf
            each = smoothing / alive.sum(-1, keepdim=True).to(q.dtype)
            likely = likely + each * student.masked_fill(~alive, 0.0).sum(-1, keepdim=True) - smoothing * log_sum
            if by_logits is not None:
                by_logits.sub_(alive * (factor * each))
        return -torch.where(factor == 0, 0.0, factor * likely).sum()

    def _fused(self, student: Tensor, teacher: Tensor, rows: slice, gradient: bool) -> tuple[Tensor, Tensor]:
        from decoct.objectives._triton_kl import forward_kl_in_place

        if self.labels is None:
            return forward_kl_in_place(student, teacher, self.temperature, gradient)
        assert self.cross_entropy is not None
        hard = (self.labels.target[rows], self.cross_entropy[rows], self.labels.smoothing)
        return forward_kl_in_place(student, teacher, self.temperature, gradient, hard)


def log_sum_of(logits: Tensor, p: Tensor) -> Tensor:
    """log Σ exp(logits) of each row, from p = softmax(logits): without another pass of exponentials."""
    return logits.amax(-1) - p.amax(-1).log()


def forward_kl(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """KL(p‖q) of each row, its gradient by the logits, and q, in few passes; -inf where p is 0 is left out."""
    if temperature != 1:
        student, teacher = student / temperature, teacher / temperature
    q = torch.softmax(student, -1)
    value, by_logits = forward_kl_of(student, q, teacher)
    return value, by_logits if temperature == 1 else by_logits.div_(temperature), q


def forward_kl_of(student: Tensor, q: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """`forward_kl` at temperature 1 where q = softmax(student) is at hand; nothing that is given is changed."""
    p = torch.softmax(teacher, -1)
    gap = teacher - student
    value = torch.linalg.vecdot(p, gap)
    if value.device.type != "cpu" or value.isnan().any():
        value = torch.linalg.vecdot(p, gap.masked_fill_(p == 0, 0.0))
    value = value - (log_sum_of(teacher, p) - log_sum_of(student, q))
    return value, torch.sub(q, p, out=p)


def top_k(logits: Tensor, log_q: Tensor, q: Tensor, targets: TopK, temperature: float) -> tuple[Tensor, Tensor]:
    """KL of each row to what is kept of the teacher, and its gradient by the logits, in the place of q."""
    p, log_p, log_events = described(logits, targets, temperature, None, "linear_kd_loss")
    value = weigh(p, log_p - log_events).sum(-1)
    count = targets.ids.shape[-1]
    kept, tail = p.split([count, p.shape[-1] - count], -1)
    if targets.tail == "sample":
        assert targets.drawn is not None
        q.scatter_add_(-1, targets.drawn, -tail)
    else:
        others = log_q.scatter(-1, targets.ids, -torch.inf)
        if targets.tail == "bucket":
            bucket = log_events[..., -1:]
            q.addcmul_(others.sub_(bucket.masked_fill(bucket == -torch.inf, 0.0)).exp_(), tail, value=-1)
        else:
            alive = others != -torch.inf
            q.sub_(alive * (tail / alive.sum(-1, keepdim=True).clamp(min=1)))
    return value, q.scatter_add_(-1, targets.ids, -kept).div_(temperature)


@dataclass(frozen=True)
class Gradients:
    """By the student's hidden states, weight and bias, where they are wanted; float32 at least."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


Wanted = tuple[bool, bool, bool]
"""Whether hidden states, weight and bias take gradients."""
Work = Callable[[Tensor, Sequence[Tensor | TopK], slice], None]
"""Done with each block of logits: those of the student, which their gradient replaces, what each teacher says, rows."""


def sweep(
    student: Side, teacher: Online | TopK, recipe: Recipe, chunk: int, wanted: Wanted
) -> tuple[Tensor, Tensor, Gradients]:
    """Mean divergence, weighed mean cross-entropy, and the gradients of their sum; `chunk` tokens' logits at a time."""
    full = full_type(student, [teacher])
    share = 1 / max(len(student.hidden), 1)
    sums = [student.hidden.new_zeros((), dtype=full) for _ in range(2)]

    def work(logits: Tensor, teacher_logits: Sequence[Tensor | TopK], rows: slice) -> None:
        one, two = recipe.block(logits, teacher_logits[0], rows, any(wanted))
        sums[0], sums[1] = sums[0] + one * share, sums[1] + two * share

    found = over_blocks(student, [teacher], work, chunk, wanted, share)
    return sums[0], sums[1], found


def over_blocks(
    student: Side, teachers: Sequence[Online | TopK], work: Work, chunk: int, wanted: Wanted, factor: float
) -> Gradients:
    """Does `work` with the logits of all tokens, a block at a time; `factor` times the gradients that it leaves."""
    hidden, head, full = student.hidden, student.head, full_type(student, teachers)
    found = Gradients(
        torch.empty_like(hidden, dtype=full) if wanted[0] else None,
        torch.zeros_like(head.weight, dtype=full) if wanted[1] else None,
        hidden.new_zeros(len(head.weight), dtype=full) if wanted[2] else None,
    )
    own, theirs = _Room(student, chunk, full), [_Room(each, chunk, full) for each in teachers]
    for start in range(0, len(hidden), chunk):
        part = slice(start, min(start + chunk, len(hidden)))
        logits, teacher_logits = own.logits(part), [each.logits(part) for each in theirs]
        assert isinstance(logits, Tensor)
        for rows in _blocks(logits):
            capped = logits[rows].clone() if any(wanted) and head.softcap is not None else None
            inside = slice(start + rows.start, start + rows.stop)
            work(logits[rows], [_rows_of(each, rows) for each in teacher_logits], inside)
            if capped is not None and head.softcap is not None:
                slope = 1 - (capped / head.softcap).clamp_(-1, 1).square_()
                logits[rows].mul_(slope)
        _products(found, student, part, logits, own, factor * head.scale)
    return found


def full_type(student: Side, teachers: Sequence[Online | TopK]) -> torch.dtype:
    """The type of logits and losses: float32 at least."""
    types = [student.hidden.dtype, torch.float32, *(each.hidden.dtype for each in teachers if isinstance(each, Side))]
    return max(types, key=lambda each: torch.finfo(each).bits)


def tokens_within(limit: int, student: Side, teachers: Sequence[Online | TopK]) -> int:
    """How many tokens' logits, with all that is made of them at once, take `limit` bytes; at least one.

    On the CPU the passes over the logits work on small blocks, on an accelerator on all of a chunk: six more of them.
    """
    full = full_type(student, teachers)
    each = 0
    for side in (student, *teachers):
        if not isinstance(side, TopK):
            each += full.itemsize
        if isinstance(side, Side) and side.hidden.dtype != full:
            each += side.hidden.dtype.itemsize
    if student.hidden.device.type != "cpu":
        each += 6 * full.itemsize
    return max(limit // (each * len(student.head.weight)), 1)


def tokens_at_once(student: Side, teachers: Sequence[Online | TopK], limit: int | None = None) -> int:
    """How many tokens' logits are worked on: as many as `limit` bytes have room for, by default those of the device."""
    accelerated = student.hidden.device.type != "cpu"
    tokens = tokens_within(limit or CHUNK_BYTES[accelerated], student, teachers)
    return tokens if limit is not None or accelerated else min(tokens, ENOUGH)


class _Room:
    """Room for one chunk's logits, used again for each; `product` for products in another type."""

    def __init__(self, source: Online | TopK, chunk: int, full: torch.dtype) -> None:
        self.source, self.type = source, full
        self.product: Tensor | None = None
        if isinstance(source, Side):
            hidden = source.hidden
            shape = min(chunk, max(len(hidden), 1)), len(source.head.weight)
            self.full = hidden.new_empty(shape, dtype=full)
            if full != hidden.dtype:
                self.product = hidden.new_empty(shape)

    def logits(self, part: slice) -> Tensor | TopK:
        """What the source says of these tokens, or stands in the place of logits."""
        if isinstance(self.source, Side):
            out = self.full[: part.stop - part.start]
            return self.source.logits(part, out, out if self.product is None else self.product[: len(out)])
        return _rows_of(self.source, part) if isinstance(self.source, TopK) else self.source(part).to(self.type)


def _rows_of(logits: Tensor | TopK, rows: slice) -> Tensor | TopK:
    return logits.each(lambda each: each[rows]) if isinstance(logits, TopK) else logits[rows]


def _blocks(logits: Tensor) -> Iterator[slice]:
    """Rows worked on at once: all of them on an accelerator, as many as stay in the cache on the CPU."""
    count = len(logits)
    size = count if logits.device.type != "cpu" else max(BLOCK // max(logits.shape[-1], 1), 1)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _products(found: Gradients, student: Side, part: slice, gradient: Tensor, room: _Room, factor: float) -> None:
    """Adds what the gradient by a chunk's logits gives, times `factor`."""
    own = gradient
    if room.product is not None and (found.hidden is not None or found.weight is not None):
        own = room.product[: len(gradient)].copy_(gradient)
    if found.hidden is not None:
        torch.mul(torch.mm(own, student.head.weight), factor, out=found.hidden[part])
    if found.weight is not None and room.product is None:
        found.weight.addmm_(own.T, student.hidden[part], alpha=factor)
    elif found.weight is not None:
        found.weight.add_(torch.mm(own.T, student.hidden[part]), alpha=factor)
    if found.bias is not None:
        found.bias.add_(gradient.sum(0), alpha=factor)
