"""One pass over a student's logits, a few tokens at a time, for all terms that are functions of rows of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives._ahead import Sums, run_ahead
from decoct.objectives._closed_form import derivative
from decoct.objectives._divergence import DIVERGENCES
from decoct.objectives._head import (
    Online,
    Side,
    Wanted,
    forward_kl_of,
    log_sum_of,
    over_blocks,
    side_of,
    tokens_at_once,
    top_k,
)
from decoct.objectives._numeric import class_target, log_softmax, refuse_unlike_mask, shape, weigh
from decoct.objectives.top_k_kl import described, without_tail
from decoct.outputs import Dense, Distribution, Factored, TopK


@dataclass(frozen=True)
class Soft:
    """`factor` · a divergence of two rows of logits at a temperature; `options` are its own (`beta`, `alpha`)."""

    divergence: str
    temperature: float = 1.0
    factor: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Hard:
    """−Σ t log q, t = (1−ε)·one-hot + ε/V over the V classes that are not at -inf, ε = `smoothing`."""

    smoothing: float = 0.0


@dataclass(frozen=True)
class Rows:
    """A term's part of a sweep: the mean of its loss over the rows of the `student` that are `kept` `[*B]` bool (None:
    all), under a `teacher` or with class ids `target` `[*B]`; `label` for messages."""

    label: str
    student: Factored
    loss: Soft | Hard
    kept: Tensor | None = None
    teacher: Distribution | None = None
    target: Tensor | None = None


def swept(parts: Sequence[Rows], weights: Sequence[float | Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Σ weight · mean of the loss of each part, all of one student, and these means without weight and gradient.

    The student's logits are made once, a chunk of tokens at a time, and never kept; a row is skipped where no part
    counts it. Value and gradients (hidden states, weight and bias) equal those of the plain losses on the whole logits;
    with no row at all they are 0, not None. Products are taken in the type of the student's forward pass, all else in
    float32 at least. RecipeError: shapes or targets that do not fit; a second derivative.

    >>> from decoct.outputs import Head
    >>> student = Factored(torch.ones(2, 3), Head(torch.zeros(5, 3)))
    >>> total, means = swept([Rows("ce", student, Hard(), target=torch.tensor([0, 4]))], [0.5])
    >>> round(total.item(), 4), round(means[0].item(), 4)
    (0.8047, 1.6094)
    """
    student = parts[0].student
    hidden, head = student.hidden, student.head
    with torch.autocast(hidden.device.type, enabled=False):
        index = _counted(parts)
        hidden = _picked(hidden, index, hidden.shape[:-1])
        own = side_of(hidden, head, student.product)
        sweep = _Sweep.of(parts, weights, index, own)

        def run(wanted: Wanted) -> Sums:
            return sweep.run(own, wanted)

        total, *means = run_ahead(hidden, head, run)
    return total, [each.detach() for each in means]


def alone(rows: Rows) -> Tensor:
    """The mean of one part, with its gradient."""
    return swept([rows], [1.0])[0]


def _counted(parts: Sequence[Rows]) -> Tensor | None:
    """Which of the flattened rows at least one part counts, int64 `[N]`; None for all of them."""
    items = parts[0].student.hidden.shape[:-1]
    for each in parts:
        if each.kept is not None:
            refuse_unlike_mask(each.label, each.kept, items)
    masks = [each.kept for each in parts if each.kept is not None]
    if len(masks) < len(parts):
        return None
    index = torch.stack(masks).any(0).flatten().nonzero().squeeze(1)
    return None if len(index) == items.numel() else index


def _picked(value: Tensor, index: Tensor | None, items: torch.Size) -> Tensor:
    """Rows `[N, ...]` of a tensor `[*B, ...]`."""
    flat = value.reshape(-1, *value.shape[len(items) :])
    return flat if index is None else flat[index]


@dataclass(frozen=True)
class _Part:
    """What one term adds to a sweep of N rows.

    `source`: the place of its teacher among the sources; `target` `[N]`; `share` what each row counts in its mean: one
    number, or `[N]` with 0 for rows that it leaves out; `weight` of its gradient, 1 / N left out.
    """

    loss: Soft | Hard
    source: int | None
    target: Tensor | None
    share: Tensor
    weight: float | Tensor

    def mean(self, values: Tensor, rows: slice) -> Tensor:
        """What a block's values `[n]` add to the mean."""
        if not self.share.ndim:
            return values.sum() * self.share
        share = self.share[rows]
        return torch.where(share == 0, 0.0, values * share).sum()

    def factor(self, count: int, rows: slice) -> Tensor:
        """Of the gradient of each row, `[]` or `[n, 1]`; `count` of the N rows, which divides all gradients later."""
        share = self.share if not self.share.ndim else self.share[rows].unsqueeze(-1)
        return share * (self.weight * count)


class _Block:
    """A block of the student's logits `[n, V]`, with what several terms make of them."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self._scaled: dict[float, Tensor] = {1.0: logits}
        self._q: dict[float, Tensor] = {}
        self.gradient: Tensor | None = None

    def scaled(self, temperature: float) -> Tensor:
        """The logits divided by T."""
        if temperature not in self._scaled:
            self._scaled[temperature] = self.logits / temperature
        return self._scaled[temperature]

    def q(self, temperature: float = 1.0) -> Tensor:
        """softmax(logits / T); not to be changed."""
        if temperature not in self._q:
            self._q[temperature] = torch.softmax(self.scaled(temperature), -1)
        return self._q[temperature]

    def add(self, gradient: Tensor, factor: Tensor) -> None:
        """Adds factor · gradient, which may be changed; where the factor is 0 whatever stands there is left out."""
        if factor.ndim:
            gradient.masked_fill_(factor == 0, 0.0)
        if self.gradient is None:
            self.gradient = gradient.mul_(factor)
        else:
            self.gradient.addcmul_(gradient, factor)


@dataclass(frozen=True)
class _Sweep:
    """The parts of a sweep over `count` rows, and where their teachers' logits come from."""

    parts: Sequence[_Part]
    sources: Sequence[Online | TopK]
    count: int

    @classmethod
    def of(cls, parts: Sequence[Rows], weights: Sequence[float | Tensor], index: Tensor | None, own: Side) -> _Sweep:
        sources: list[Online | TopK] = []
        places: dict[int, int] = {}
        found = []
        for rows, weight in zip(parts, weights, strict=True):
            place = None
            if rows.teacher is not None:
                place = places.setdefault(id(rows.teacher), len(sources))
                if place == len(sources):
                    sources.append(_source(rows, rows.teacher, index))
            found.append(_part(rows, weight, index, own, place))
        return cls(found, sources, len(own.hidden))

    def run(self, own: Side, wanted: Wanted) -> Sums:
        """The total, the mean of each part, and the gradients of the total."""
        zero = own.hidden.new_zeros((), dtype=torch.promote_types(own.hidden.dtype, torch.float32))
        means = [zero for _ in self.parts]

        def work(logits: Tensor, teacher_outputs: Sequence[Tensor | TopK], rows: slice) -> None:
            block = _Block(logits)
            for place, part in enumerate(self.parts):
                outputs = None if part.source is None else teacher_outputs[part.source]
                means[place] = means[place] + self._one(part, block, outputs, rows, any(wanted))
            if any(wanted):
                assert block.gradient is not None
                logits.copy_(block.gradient)

        chunk = tokens_at_once(own, self.sources)
        found = over_blocks(own, self.sources, work, chunk, wanted, 1 / max(self.count, 1))
        total = zero
        for part, mean in zip(self.parts, means):
            total = total + part.weight * mean
        return (total.to(zero.dtype), *means), found

    def _one(
        self, part: _Part, block: _Block, teacher_outputs: Tensor | TopK | None, rows: slice, gradient: bool
    ) -> Tensor:
        """What a block adds to the mean of one part; its gradient goes into the block."""
        factor = part.factor(self.count, rows)
        if isinstance(part.loss, Hard):
            assert part.target is not None
            values = _hard(part.loss, block, part.target[rows].unsqueeze(-1), factor if gradient else None)
            return part.mean(values, rows)
        assert teacher_outputs is not None
        values, by_logits = _soft(part.loss, block, teacher_outputs, gradient)
        if by_logits is not None:
            block.add(by_logits, factor * (part.loss.factor / part.loss.temperature))
        return part.mean(values, rows) * part.loss.factor


def _soft(loss: Soft, block: _Block, teacher_outputs: Tensor | TopK, gradient: bool) -> tuple[Tensor, Tensor | None]:
    """The divergence of each row, and T times its gradient by the logits, where it is wanted."""
    temperature, q = loss.temperature, block.q(loss.temperature)
    if isinstance(teacher_outputs, TopK):
        return _soft_top_k(block.logits, q, teacher_outputs, temperature, gradient)
    if loss.divergence == "forward_kl":
        return forward_kl_of(
            block.scaled(temperature), q, teacher_outputs if temperature == 1 else teacher_outputs / temperature
        )
    if not gradient:
        return DIVERGENCES[loss.divergence](
            block.logits, teacher_outputs, temperature=temperature, **loss.options
        ), None
    closed = derivative(loss.divergence, dict(loss.options))
    if closed is None:
        return _by_autograd(loss, block.logits, teacher_outputs)
    values, by_log_q = closed(log_softmax(teacher_outputs, temperature), log_softmax(block.logits, temperature), q)
    return values, by_log_q.addcmul_(q, by_log_q.sum(-1, keepdim=True), value=-1)


def _soft_top_k(
    logits: Tensor, q: Tensor, teacher_outputs: TopK, temperature: float, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    if not gradient:
        p, log_p, log_q = described(logits, teacher_outputs, temperature, None, "sweep")
        return weigh(p, log_p - log_q).sum(-1), None
    values, by_logits = top_k(logits, log_softmax(logits, temperature), q.clone(), teacher_outputs, temperature)
    return values, by_logits.mul_(temperature)


def _by_autograd(loss: Soft, logits: Tensor, teacher_outputs: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        plain = partial(DIVERGENCES[loss.divergence], temperature=loss.temperature, **loss.options)
        values = plain(leaf, teacher_outputs)
        (found,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), found.mul_(loss.temperature)


def _hard(loss: Hard, block: _Block, ids: Tensor, factor: Tensor | None) -> Tensor:
    """The cross-entropy of each row with class ids `[n, 1]`; factor · its gradient is added to the block."""
    logits, q, smoothing = block.logits, block.q(), loss.smoothing
    log_sum = log_sum_of(logits, q).unsqueeze(-1)
    likely = (logits.gather(-1, ids) - log_sum) * (1 - smoothing)
    if factor is not None:
        if block.gradient is None:
            block.gradient = q * factor
        else:
            block.gradient.addcmul_(q, factor)
        block.gradient.scatter_add_(-1, ids, (factor * (smoothing - 1)).expand(ids.shape))
    if smoothing:
        alive = logits != -torch.inf
        each = smoothing / alive.sum(-1, keepdim=True).to(q.dtype)
        likely = likely + each * logits.masked_fill(~alive, 0.0).sum(-1, keepdim=True) - smoothing * log_sum
        if factor is not None:
            assert block.gradient is not None
            block.gradient.sub_(alive * (factor * each))
    return -likely.squeeze(-1)


def _part(rows: Rows, weight: float | Tensor, index: Tensor | None, own: Side, source: int | None) -> _Part:
    items, count = rows.student.hidden.shape[:-1], len(own.hidden)
    full = torch.promote_types(own.hidden.dtype, torch.float32)
    share = own.hidden.new_full((), 1 / max(count, 1), dtype=full)
    kept = None if rows.kept is None else _picked(rows.kept.to(own.hidden.device), index, items)
    if kept is not None and not bool(kept.all()):
        share = kept.to(full) / kept.sum().clamp(min=1)
    target = None
    if isinstance(rows.loss, Hard):
        assert rows.target is not None
        if rows.target.shape != items:
            raise RecipeError(f"{rows.label}: hidden {shape(rows.student.hidden)} and target {shape(rows.target)}")
        logits = own.hidden.new_empty(()).expand(count, len(own.head.weight))
        target = class_target(rows.label, logits, _picked(rows.target.to(own.hidden.device), index, items), kept)
    return _Part(rows.loss, source, target, share, weight.detach().to(share) if isinstance(weight, Tensor) else weight)


def _source(rows: Rows, teacher: Distribution, index: Tensor | None) -> Online | TopK:
    """Where the teacher's logits of the rows that count come from; RecipeError where its shape is another."""
    student, items = rows.student, rows.student.hidden.shape[:-1]
    if teacher.shape != student.shape:
        raise RecipeError(
            f"{rows.label}: student logits {list(student.shape)} and teacher logits {list(teacher.shape)}; the shapes "
            "must be equal"
        )
    if isinstance(teacher, TopK):
        return without_tail(teacher).each(lambda each: _picked(each.detach(), index, items))
    if isinstance(teacher, Factored):
        return side_of(_picked(teacher.hidden, index, items), teacher.head, teacher.product)
    assert isinstance(teacher, Dense)
    flat = teacher.logits.detach().reshape(-1, teacher.shape[-1])
    return lambda part: flat[part] if index is None else flat[index[part]]
