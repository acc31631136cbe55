"""A term's value under a teacher whose answer is refined first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives._numeric import weighing
from decoct.objectives._selection import chosen, kept, masked, selected, zero
from decoct.objectives.base import Objective, Term
from decoct.objectives.refine.base import Lesson
from decoct.outputs import Batch, Needs, Outputs
from decoct.training.clock import Clock
from decoct.training.schedules import Schedule


def value_of(
    objective: Objective, term: Term, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock
) -> Tensor:
    """The term's value on the samples that count for it, under what its refinements make of the teacher's answer."""
    keep = kept(objective, term, batch)
    if objective.refine:
        return _refined(objective, term, keep, student, teachers, batch, clock)
    return selected(term, keep, student, teachers, batch, clock)


def try_refinements(
    objective: Objective, term: Term, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch
) -> None:
    """Runs a term once as it will be run, so that RecipeError says before training what does not go together."""
    if term.selection == "own":
        raise RecipeError(f"{objective.label}: refine: this objective chooses its samples itself; leave refine out")
    mode = term.training
    with torch.no_grad():
        value_of(objective, term.eval(), student, teachers, batch, Clock())
    term.train(mode)


def _refined(
    objective: Objective,
    term: Term,
    keep: Tensor | None,
    student: Outputs,
    teachers: Mapping[str, Outputs],
    batch: Batch,
    clock: Clock,
) -> Tensor:
    """The term's value under the refined teacher; items that a refinement leaves out stay in the number of items."""
    ((name, outputs),) = teachers.items()
    layers = objective.needs().get("teacher", Needs()).features
    lesson = Lesson(objective.label, outputs, layers=tuple(sorted(layers)))
    for each in objective.refine:
        lesson = each.refine(lesson, batch, clock)
    if lesson.weight is not None and not term.splittable:
        raise RecipeError(
            f"{objective.label}: refine weighs items, and this objective relates them to each other; take a refinement "
            "that leaves items out"
        )
    part: Tensor | None = None
    if lesson.keep is not None and term.selection == "mask":
        before = student if keep is None else masked(student, keep)
        mask = lesson.keep if before.mask is None else before.mask & lesson.keep
        part = mask.sum().double() / (mask.numel() if before.mask is None else before.mask.sum().clamp(min=1))
        student, keep = replace(student, mask=mask), None
    elif lesson.keep is not None:
        both = _of_samples(objective, lesson.keep) if keep is None else keep & _of_samples(objective, lesson.keep)
        count = term.items(chosen(batch, both))
        most = _at_least_one(term.items(_chosen_batch(batch, keep)))
        part = torch.as_tensor(count, dtype=torch.float64, device=both.device) / most
        keep = both
    weight = lesson.weight
    if weight is not None and keep is not None and term.selection == "index":
        weight = weight[keep] if len(weight) == len(keep) else weight
    if keep is not None and term.selection == "index" and not keep.any():
        return zero(student)
    with weighing(objective.label, weight):
        value = selected(term, keep, student, {name: lesson.teacher}, batch, clock)
    return value if part is None else part.to(value.dtype) * value


def _of_samples(objective: Objective, keep: Tensor) -> Tensor:
    if keep.ndim != 1:
        raise RecipeError(
            f"{objective.label}: refine leaves out positions {list(keep.shape)}, and this objective compares whole "
            "samples; leave refine out here"
        )
    return keep


def _chosen_batch(batch: Batch, keep: Tensor | None) -> Batch:
    return batch if keep is None else chosen(batch, keep)


def _at_least_one(count: Tensor | int) -> Tensor | int:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


def schedules(objective: Objective) -> dict[str, Schedule]:
    """The scheduled settings of an objective other than its weight, as `label.setting`."""
    fields = {name: getattr(objective, name) for name in type(objective).model_fields if name != "weight"}
    found = {f"{objective.label}.{name}": value for name, value in fields.items() if isinstance(value, Schedule)}
    for each in objective.refine:
        settings = {name: getattr(each, name) for name in type(each).model_fields}
        found |= {f"{objective.label}.{each.use}.{k}": v for k, v in settings.items() if isinstance(v, Schedule)}
    return found
