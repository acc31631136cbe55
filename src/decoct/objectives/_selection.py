"""Which samples a term sees, and how the others are kept away from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from decoct.objectives.base import Objective, Term
from decoct.outputs import Batch, Outputs
from decoct.training.clock import Clock


def kept(objective: Objective, term: Term, batch: Batch) -> Tensor | None:
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


def selected(
    term: Term, keep: Tensor | None, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock
) -> Tensor:
    """The term's value over the samples of `keep`."""
    if keep is None:
        result = term(student, teachers, batch, clock)
    elif term.selection == "mask":
        result = term(masked(student, keep), teachers, batch, clock)
    else:
        if not keep.any():
            return zero(student)
        chosen = keep.nonzero().squeeze(1)
        teacher_outputs = {name: each.take(chosen, len(keep)) for name, each in teachers.items()}
        result = term(student.take(chosen, len(keep)), teacher_outputs, batch.take(chosen), clock)
    assert isinstance(result, Tensor)
    return result


def masked(outputs: Outputs, keep: Tensor) -> Outputs:
    """The same outputs, their mask narrowed to the samples of `keep`."""
    assert outputs.logits is not None
    items = outputs.logits.shape[:-1]
    keep = keep.to(outputs.logits.device).reshape(-1, *(1 for _ in items[1:])).expand(items)
    return replace(outputs, mask=keep if outputs.mask is None else outputs.mask & keep)


def chosen(batch: Batch, keep: Tensor) -> Batch:
    """The batch of the samples of `keep`."""
    return batch.take(keep.nonzero().squeeze(1))


def zero(outputs: Outputs) -> Tensor:
    """0 with a gradient of 0 to what the student gave."""
    given = [each for each in (outputs.logits, *outputs.features.values()) if each is not None]
    assert given, "the student gave neither logits nor features"
    return sum((each[:0].float().sum() for each in given), torch.zeros((), device=given[0].device))
