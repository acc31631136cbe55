"""Criterion: an objective at work. It builds the terms, gives each its teacher and samples, and adds them up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from decoct.data.parts import Padding
from decoct.errors import RecipeError, did_you_mean
from decoct.objectives._fusing import Fused, fused, parts_of
from decoct.objectives._gradients import read_features, refuse_constant, refuse_without_gradient
from decoct.objectives._refining import schedules, try_refinements, value_of
from decoct.objectives._selection import Selection
from decoct.objectives.answers import refuse_other_answers
from decoct.objectives.balance.base import Balancer
from decoct.objectives.base import Objective, Probe, Sum, Term
from decoct.objectives.sources import batch_at, role_and_source, said_at
from decoct.outputs import DENSE, Batch, Dense, Factored, Needs, Outputs
from decoct.training.clock import Clock
from decoct.training.schedules import Schedule, at


@dataclass(frozen=True)
class _Running:
    """A term, with what does not change from step to step.

    `selection`: what counts for it; `splittable`: whether a window may be split; `teacher`: whom it listens to;
    `plain`: it hears student and teacher as they are (no head, no source, no refinement, all classes); `schedules`: its
    settings that change, by the name in the log; `read`: the student's features that it reads, by source.
    """

    objective: Objective
    term: Term
    selection: Selection
    splittable: bool
    label: str
    teacher: str | None
    plain: bool
    schedules: Mapping[str, Schedule]
    read: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, objective: Objective, term: Term, probe: Probe) -> _Running:
        student, _, batch = _view(objective, probe.student, probe.teachers, probe.batch, probe.known)
        selection = Selection.of(objective, term, replace(probe, student=student))
        splittable = selection.splittable(batch, student)
        teacher = teacher_name(objective, tuple(probe.teachers)) if objective.taught else None
        here = objective.head is None and objective.source is None
        plain = here and not objective.refine and teacher not in probe.known
        changing, read = schedules(objective), read_features(objective.needs())
        return cls(objective, term, selection, splittable, objective.label, teacher, plain, changing, read)


class Criterion(nn.Module):
    """The weighted sum of an objective's terms, in the order in which they were written.

    Its parameters are those of the terms (projectors, banks). `total` = Σ weight(clock) · share · term; without
    shares it equals the sum written by hand, bit for bit.
    """

    def __init__(self, objectives: Sequence[Objective], terms: Sequence[Term], probe: Probe) -> None:
        super().__init__()
        self.objectives = tuple(objectives)
        self.terms = nn.ModuleList(terms)
        self._running = tuple(_Running.of(each, term, probe) for each, term in zip(objectives, terms))
        self._known = dict(probe.known)
        self.balancer: Balancer | None = None

    @classmethod
    def build(cls, objective: Objective, probe: Probe) -> Criterion:
        """The terms of `objective`, built from what one batch showed.

        RecipeError: a term that needs a teacher has none, or several and names none of them; a head that the task
        lacks; shapes that cannot work; a supervised term on unlabelled samples.
        """
        refuse_other_answers(objective, probe.task.answer)
        objectives = objective.flat()
        terms = []
        for each in objectives:
            if each.on == "unlabelled" and each.supervised:
                raise RecipeError(f"{each.label}: on is 'unlabelled', but it needs targets; allowed: all, labelled")
            student, teachers, batch = _view(each, probe.student, probe.teachers, probe.batch, probe.known)
            counts = probe.counts if each.source is None else probe.counts_beside.get(each.source)
            seen = replace(probe, student=student, teachers=teachers, batch=batch, counts=counts)
            term = each.build(seen)
            if each.refine:
                _refuse_unknown_labels(each, teachers, probe.known)
                try_refinements(Selection.of(each, term, seen), student, teachers, batch)
            terms.append(term)
        made = cls(objectives, terms, probe)
        if isinstance(objective, Sum) and objective.balance is not None:
            taught = [each.taught for each in objectives]
            made.balancer = objective.balance.build(made.labels, taught, probe.task, probe.modules.get("student"))
        return made

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the terms, in order."""
        return tuple(each.label for each in self._running)

    def layers(self) -> list[dict[str, Any]]:
        """The pairs of layers that each term compares, with the adapter between them; for the log and the display."""
        return [{"term": each.label, **found} for each in self._running for found in each.term.layers()]

    @property
    def splittable(self) -> bool:
        """Whether every term's mean over a batch is the item-weighted mean over any split of it."""
        return all(each.splittable for each in self._running) and (self.balancer is None or self.balancer.splittable)

    @property
    def watches(self) -> bool:
        """Whether it must `observe` the scores of validations."""
        return self.balancer is not None and self.balancer.watches

    def observe(self, scores: Mapping[str, float]) -> None:
        """Hears the scores of a validation, which may change the weights of the terms."""
        if self.balancer is not None:
            self.balancer.observe(scores)

    @property
    def needs(self) -> Mapping[str, Needs]:
        """What must be captured, by role: "student", "teacher"."""
        joined: dict[str, Needs] = {}
        for each in self.objectives:
            for role, needs in _reads(each).items():
                joined[role] = joined.get(role, Needs()) | needs
        return joined

    def weights(self, clock: Clock) -> dict[str, float]:
        """The weight of each term now, by label, and its other numbers that change as `label.setting`.

        With a balance the weights are those of the last training step.
        """
        factors = {} if self.balancer is None else self.balancer.last()
        found = {each.label: at(each.objective.weight, clock) * factors.get(each.label, 1.0) for each in self._running}
        for each in self._running:
            found |= {name: value.at(clock) for name, value in each.schedules.items()}
            found |= {f"{each.label}.{name}": value for name, value in each.term.learned().items()}
        return found

    def items(self, batch: Batch) -> dict[str, Tensor | int]:
        """How many items each term averages over, 0 of a Padding; known before any forward pass."""
        return {each.label: _items(each, batch) for each in self._running}

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
        values: dict[str, Tensor] = {}
        parts: dict[str, Tensor] = {}
        weights = {each.label: at(each.objective.weight, clock) for each in self._running}
        together = self._fused(student, teachers, batch, clock, weights, shares)
        for each in self._running:
            if each.label in together.means:
                parts[each.label] = together.means[each.label]
                continue
            refuse_without_gradient(each.objective, each.read, student)
            part = shares is not None
            value = values[each.label] = self._value(each, student, teachers, batch, clock, part)
            if not value.requires_grad:
                refuse_constant(each.objective, value, student)
            parts[each.label] = value.detach()
        if self.balancer is not None:
            return self.balancer(values, weights, shares, clock), parts
        total = together.total
        for label, value in values.items():
            weighted = weights[label] * value if shares is None else weights[label] * shares[label] * value
            total = weighted if total is None else total + weighted
        assert total is not None
        return total, parts

    def _fused(
        self,
        student: Outputs,
        teachers: Mapping[str, Outputs],
        batch: Batch,
        clock: Clock,
        weights: Mapping[str, float],
        shares: Mapping[str, Tensor | float] | None,
    ) -> Fused:
        """The terms that take part in one sweep over a factored distribution; a balancer looks at each by itself."""
        if self.balancer is not None or not any(
            isinstance(each.distribution, Factored) for each in (student, *student.heads.values())
        ):
            return Fused(None, {})
        found = {}
        for each in self._running:
            view = _view(each.objective, student, teachers, batch, self._known)
            rows = parts_of(each.selection, *view, clock)
            if rows is not None:
                found[each.label] = rows
        return fused(found, weights, shares)

    def _value(
        self, each: _Running, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock, part: bool
    ) -> Tensor:
        if not each.plain:
            view = _view(each.objective, student, teachers, batch, self._known)
            return value_of(each.selection, *view, clock, part=part)
        teacher_outputs = {} if each.teacher is None else {each.teacher: teachers[each.teacher]}
        return each.selection.value(student, teacher_outputs, batch, clock, part=part)


def _items(each: _Running, batch: Batch) -> Tensor | int:
    own = batch_at(each.objective, batch)
    count = each.selection.items(_of_head(each.objective, own))
    return 0 * count if isinstance(own, Padding) else count


def _reads(objective: Objective) -> Mapping[str, Needs]:
    """What a term wants of each role, and its refinements, which read what the teacher says of all classes."""
    needs = objective.needs()
    if not objective.refine:
        return needs
    return {**needs, "teacher": needs.get("teacher", Needs()) | DENSE}


def needs_of(objective: Objective, teachers: Sequence[str], loss: Needs) -> dict[str, Needs]:
    """What must be captured of the "student" and of each of `teachers` by name, before a Criterion is built, and about
    which sources beside the main one each of them is asked.

    `loss`: what the task's own loss reads of the student (`answer.needs`), where a term asks for it.
    """
    wanted: dict[str, Needs] = {name: Needs() for name in ("student", *teachers)}
    for each in objective.flat():
        if each.asks_task:
            wanted["student"] = wanted["student"] | loss
        asked = dict(_reads(each))
        if each.source is not None:
            for role in ("student", *["teacher"] * each.taught):
                asked[f"{role}@{each.source}"] = Needs()
        for role, needs in asked.items():
            of, source = role_and_source(role)
            name = of if of == "student" else teacher_name(each, teachers)
            wanted[name] = wanted[name] | needs | Needs(sources=frozenset({source} if source else ()))
    return wanted


def teacher_name(objective: Objective, names: Sequence[str]) -> str:
    """The teacher that an objective listens to; RecipeError where there is none or several to choose from."""
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
    """What one term sees: its source, its head, its teacher, and of the classes those that its teacher knows."""
    student, batch = said_at(objective, student), batch_at(objective, batch)
    chosen: Mapping[str, Outputs] = {}
    if objective.taught:
        name = teacher_name(objective, tuple(teachers))
        chosen = {name: said_at(objective, teachers[name])}
        if name in known:
            student = _of_classes(objective, student, known[name])
    if objective.head is None:
        return student, chosen, batch
    picked = {name: _head(objective, each) if each.heads else each for name, each in chosen.items()}
    return _head(objective, student), picked, _of_head(objective, batch)


def _refuse_unknown_labels(
    objective: Objective, teachers: Mapping[str, Outputs], known: Mapping[str, Sequence[int]]
) -> None:
    for each in objective.refine:
        if each.labels and not known.keys().isdisjoint(teachers):
            raise RecipeError(
                f"{objective.label}: refine with {each.use} reads labels, and the teacher does not know all classes of "
                "the task; leave it out"
            )


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
        distribution=None if logits is None else Dense(logits),
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


def _of_head(objective: Objective, batch: Batch) -> Batch:
    return batch if objective.head is None else batch.of_head(objective.head)
