"""Criterion: an objective at work. It builds the terms, gives each its teacher and samples, and adds them up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from decoct.errors import RecipeError, did_you_mean
from decoct.objectives.base import Objective, Probe, Term
from decoct.outputs import Batch, Needs, Outputs
from decoct.training.clock import Clock
from decoct.training.schedules import at


class Criterion(nn.Module):
    """The weighted sum of an objective's terms, in the order in which they were written.

    Its parameters are those of the terms (projectors, banks). `total` = Σ weight(clock) · share · term; without
    shares it equals the sum written by hand, bit for bit.
    """

    def __init__(self, objectives: Sequence[Objective], terms: Sequence[Term], probe: Probe) -> None:
        super().__init__()
        self.objectives = tuple(objectives)
        self.terms = nn.ModuleList(terms)
        self._positions = probe.student.mask is not None
        self._task = probe.task
        self._known = dict(probe.known)

    @classmethod
    def build(cls, objective: Objective, probe: Probe) -> Criterion:
        """The terms of `objective`, built from what one batch showed.

        RecipeError: a term that needs a teacher has none, or several and names none of them; a head that the task
        lacks; shapes that cannot work; a supervised term on unlabelled samples.
        """
        objectives = objective.flat()
        terms = []
        for each in objectives:
            if each.on == "unlabelled" and each.supervised:
                raise RecipeError(f"{each.label}: on is 'unlabelled', but it needs targets; allowed: all, labelled")
            if each.on == "unlabelled" and probe.student.mask is not None:
                raise RecipeError(f"{each.label}: on is 'unlabelled'; a task with a mask of positions allows: all")
            student, teachers, batch = _view(each, probe.student, probe.teachers, probe.batch, probe.known)
            terms.append(each.build(replace(probe, student=student, teachers=teachers, batch=batch)))
        return cls(objectives, terms, probe)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the terms, in order."""
        return tuple(each.label for each in self.objectives)

    @property
    def splittable(self) -> bool:
        """Whether every term's mean over a batch is the item-weighted mean over any split of it."""
        return all(term.splittable for term in self._running())

    @property
    def needs(self) -> Mapping[str, Needs]:
        """What must be captured, by role: "student", "teacher"."""
        joined: dict[str, Needs] = {}
        for each in self.objectives:
            for role, needs in each.needs().items():
                joined[role] = joined.get(role, Needs()) | needs
        return joined

    def weights(self, clock: Clock) -> dict[str, float]:
        """The weight of each term now."""
        return {each.label: at(each.weight, clock) for each in self.objectives}

    def items(self, batch: Batch) -> dict[str, Tensor | int]:
        """How many items each term averages over; known before any forward pass."""
        counts: dict[str, Tensor | int] = {}
        for each, term in zip(self.objectives, self._running()):
            seen = replace(batch, target=_of_head(each, batch.target))
            keep = _keep(each, term, seen)
            if keep is None:
                counts[each.label] = term.items(seen)
            elif term.selection == "index":
                counts[each.label] = term.items(_picked_batch(seen, _picker(keep)))
            else:
                counts[each.label] = self._task.items(seen) if self._positions else keep.sum()
        return counts

    def forward(
        self,
        student: Outputs,
        teachers: Mapping[str, Outputs],
        batch: Batch,
        clock: Clock,
        shares: Mapping[str, Tensor | float] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum, and each term's unweighted value without gradient, by label.

        `shares`: what part of a window's items this batch holds, by label; multiplies each term.
        """
        total: Tensor | None = None
        parts: dict[str, Tensor] = {}
        for each, term in zip(self.objectives, self._running()):
            value = _value(each, term, *_view(each, student, teachers, batch, self._known), clock)
            parts[each.label] = value.detach()
            weight = at(each.weight, clock)
            weighted = weight * value if shares is None else weight * shares[each.label] * value
            total = weighted if total is None else total + weighted
        assert total is not None
        return total, parts

    def _running(self) -> Iterable[Term]:
        for term in self.terms:
            assert isinstance(term, Term)
            yield term


def needs_of(objective: Objective, teachers: Sequence[str]) -> dict[str, Needs]:
    """What must be captured of the "student" and of each of `teachers` by name, before a Criterion is built."""
    wanted: dict[str, Needs] = {name: Needs() for name in ("student", *teachers)}
    for each in objective.flat():
        for role, needs in each.needs().items():
            name = role if role == "student" else _teacher_name(each, teachers)
            wanted[name] = wanted[name] | needs
    return wanted


def _teacher_name(objective: Objective, names: Sequence[str]) -> str:
    listed = ", ".join(names)
    if not names:
        raise RecipeError(f"{objective.label}: it needs a teacher, and there is none")
    if objective.teacher is None:
        if len(names) > 1:
            raise RecipeError(f"{objective.label}: several teachers ({listed}); say which one with `teacher`")
        return names[0]
    if objective.teacher not in names:
        raise RecipeError(
            f"{objective.label}: teacher is {objective.teacher!r}; {did_you_mean(objective.teacher, names)}"
        )
    return objective.teacher


def _view(
    objective: Objective,
    student: Outputs,
    teachers: Mapping[str, Outputs],
    batch: Batch,
    known: Mapping[str, Sequence[int]],
) -> tuple[Outputs, Mapping[str, Outputs], Batch]:
    """What one term sees: its head, its teacher, and of the classes those that its teacher knows."""
    chosen: Mapping[str, Outputs] = {}
    if objective.taught:
        name = _teacher_name(objective, tuple(teachers))
        chosen = {name: teachers[name]}
        if name in known:
            student = _of_classes(objective, student, known[name])
    if objective.head is None:
        return student, chosen, batch
    picked = {name: _head(objective, each) if each.heads else each for name, each in chosen.items()}
    return _head(objective, student), picked, replace(batch, target=_of_head(objective, batch.target))


def _of_classes(objective: Objective, outputs: Outputs, known: Sequence[int]) -> Outputs:
    """The logits of the classes that the teacher knows: their softmax is what the student says, given one of them."""
    if objective.supervised:
        raise RecipeError(
            f"{objective.label}: it needs targets among the teacher's classes, and the teacher knows {len(known)} of "
            "the student's; use kd for this teacher, or combine it with others that know the rest"
        )
    logits = None if outputs.logits is None else outputs.logits[..., list(known)]
    return replace(
        outputs,
        logits=logits,
        heads={name: _of_classes(objective, each, known) for name, each in outputs.heads.items()},
    )


def _head(objective: Objective, outputs: Outputs) -> Outputs:
    assert objective.head is not None
    if objective.head not in outputs.heads:
        raise RecipeError(
            f"{objective.label}: head is {objective.head!r}; {did_you_mean(objective.head, outputs.heads)}"
        )
    head = outputs.heads[objective.head]
    return replace(head, features={**outputs.features, **head.features})


def _of_head(objective: Objective, target: Any) -> Any:
    return target[objective.head] if objective.head is not None and isinstance(target, Mapping) else target


def _keep(objective: Objective, term: Term, batch: Batch) -> Tensor | None:
    """`[B]` bool, the samples that the term sees; None for all of them (or where it chooses itself)."""
    if term.selection == "own":
        return None
    if objective.on == "unlabelled":
        if batch.labelled is None:
            return torch.zeros(len(batch), dtype=torch.bool, device=_device(batch))
        return ~batch.labelled
    if objective.on == "labelled" or objective.supervised:
        return batch.labelled
    return None


def _device(batch: Batch) -> torch.device:
    for value in (batch.target, *batch.inputs.values()):
        if isinstance(value, Tensor):
            return value.device
        if isinstance(value, Mapping):
            return next((each.device for each in value.values() if isinstance(each, Tensor)), torch.device("cpu"))
    return torch.device("cpu")


def _value(
    objective: Objective, term: Term, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock
) -> Tensor:
    keep = _keep(objective, term, batch)
    if keep is None:
        result = term(student, teachers, batch, clock)
    elif term.selection == "mask":
        result = term(_masked(student, keep), teachers, batch, clock)
    else:
        if not keep.any():
            return _zero(student)
        pick = _picker(keep)
        picked = {name: _picked(each, pick) for name, each in teachers.items()}
        result = term(_picked(student, pick), picked, _picked_batch(batch, pick), clock)
    assert isinstance(result, Tensor)
    return result


def _masked(outputs: Outputs, keep: Tensor) -> Outputs:
    assert outputs.logits is not None
    items = outputs.logits.shape[:-1]
    keep = keep.to(outputs.logits.device).reshape(-1, *(1 for _ in items[1:])).expand(items)
    return replace(outputs, mask=keep if outputs.mask is None else outputs.mask & keep)


def _picker(keep: Tensor) -> Callable[[Tensor], Tensor]:
    """Takes the samples that count out of a tensor whose first axis is the batch."""
    chosen, size = keep.nonzero().squeeze(1), len(keep)

    def pick(value: Tensor) -> Tensor:
        return value.index_select(0, chosen.to(value.device)) if value.ndim and len(value) == size else value

    return pick


def _picked(outputs: Outputs, pick: Callable[[Tensor], Tensor]) -> Outputs:
    return replace(
        outputs,
        logits=None if outputs.logits is None else pick(outputs.logits),
        mask=None if outputs.mask is None else pick(outputs.mask),
        values={name: pick(each) for name, each in outputs.values.items()},
        features={name: pick(each) for name, each in outputs.features.items()},
        heads={name: _picked(each, pick) for name, each in outputs.heads.items()},
    )


def _picked_batch(batch: Batch, pick: Callable[[Tensor], Tensor]) -> Batch:
    return replace(
        batch,
        inputs={name: _tree(value, pick) for name, value in batch.inputs.items()},
        target=_tree(batch.target, pick),
        labelled=_tree(batch.labelled, pick),
        keys=_tree(batch.keys, pick),
    )


def _tree(value: Any, pick: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return pick(value)
    if isinstance(value, Mapping):
        return {key: _tree(each, pick) for key, each in value.items()}
    return value


def _zero(outputs: Outputs) -> Tensor:
    """0 with a gradient of 0 to what the student gave."""
    given = [each for each in (outputs.logits, *outputs.features.values()) if each is not None]
    assert given, "the student gave neither logits nor features"
    return sum((each[:0].float().sum() for each in given), torch.zeros((), device=given[0].device))
