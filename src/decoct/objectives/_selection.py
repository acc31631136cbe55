"""Which samples a term sees, and how the others are kept away from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
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
        pick = picker(keep)
        teacher_outputs = {name: picked(each, pick) for name, each in teachers.items()}
        result = term(picked(student, pick), teacher_outputs, picked_batch(batch, pick), clock)
    assert isinstance(result, Tensor)
    return result


def masked(outputs: Outputs, keep: Tensor) -> Outputs:
    """The same outputs, their mask narrowed to the samples of `keep`."""
    assert outputs.logits is not None
    items = outputs.logits.shape[:-1]
    keep = keep.to(outputs.logits.device).reshape(-1, *(1 for _ in items[1:])).expand(items)
    return replace(outputs, mask=keep if outputs.mask is None else outputs.mask & keep)


def picker(keep: Tensor) -> Callable[[Tensor], Tensor]:
    """Takes the samples that count out of a tensor whose first axis is the batch."""
    chosen, size = keep.nonzero().squeeze(1), len(keep)

    def pick(value: Tensor) -> Tensor:
        return value.index_select(0, chosen.to(value.device)) if value.ndim and len(value) == size else value

    return pick


def picked(outputs: Outputs, pick: Callable[[Tensor], Tensor]) -> Outputs:
    """The outputs for the samples that `pick` takes."""
    return replace(
        outputs,
        logits=None if outputs.logits is None else pick(outputs.logits),
        mask=None if outputs.mask is None else pick(outputs.mask),
        values={name: pick(each) for name, each in outputs.values.items()},
        features={name: pick(each) for name, each in outputs.features.items()},
        heads={name: picked(each, pick) for name, each in outputs.heads.items()},
        top=None if outputs.top is None else outputs.top.each(pick),
    )


def picked_batch(batch: Batch, pick: Callable[[Tensor], Tensor]) -> Batch:
    """The batch of the samples that `pick` takes."""
    return replace(
        batch,
        inputs={name: _tree(value, pick) for name, value in batch.inputs.items()},
        target=_tree(batch.target, pick),
        labelled=_tree(batch.labelled, pick),
        keys=_tree(batch.keys, pick),
    )


def _tree(value: Any, pick: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, np.ndarray):
        return pick(torch.from_numpy(value.view(np.int64))).numpy().view(value.dtype)
    if isinstance(value, Tensor):
        return pick(value)
    if isinstance(value, Mapping):
        return {key: _tree(each, pick) for key, each in value.items()}
    return value


def zero(outputs: Outputs) -> Tensor:
    """0 with a gradient of 0 to what the student gave."""
    given = [each for each in (outputs.logits, *outputs.features.values()) if each is not None]
    assert given, "the student gave neither logits nor features"
    return sum((each[:0].float().sum() for each in given), torch.zeros((), device=given[0].device))
