"""Where a number that is not finite comes from: a sample's inputs or target, a teacher's answer, or the student."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from decoct.data.parts import Padding
from decoct.outputs import Batch, Outputs, Predictor, content_of
from decoct.training.processes import Processes

INPUTS, TARGETS, STUDENT = "inputs", "targets", "student"
LARGE = 1e12
"""Inputs beyond this are said: float32 holds seven digits, so what is beside them is lost."""
OWN = (
    "the inputs, the targets and the teachers' answers are finite, so it is the student's own: try a lower lr, "
    "max_grad_norm, or precision: no (bf16 in place of fp16)"
)
Why = dict[str, str]
"""What is wrong with a sample, by its key as a hexadecimal number."""


@runtime_checkable
class Answering(Protocol):
    """An update whose models can be asked what they say about a batch."""

    def predictors(self) -> Mapping[str, Predictor]:
        """By name: "student", and each teacher."""


def looked_into(window: Sequence[Batch], models: Mapping[str, Predictor], processes: Processes) -> tuple[Why, bool]:
    """The samples of a window that make numbers non-finite, and whether these are all of its samples, two or more.

    Call it in eval mode and without gradients.
    """
    own: Why = {}
    samples, all_bad = 0, True
    for batch in window:
        if isinstance(batch, Padding):
            continue
        found = causes(batch, models)
        keys = keys_of(batch)
        own |= {
            keys[row]: f"{reason}{'' if batch.keys is not None else f' (row {row})'}" for row, reason in found.items()
        }
        samples, all_bad = samples + len(batch), all_bad and len(found) == len(batch)
    every = processes.gathered(json.dumps([own, samples, all_bad]).encode())
    merged = processes.shared(lambda: [json.loads(each) for each in every])
    why = {key: reason for found, _, _ in merged for key, reason in found.items()}
    return why, sum(count for _, count, _ in merged) > 1 and all(each for _, _, each in merged)


def causes(batch: Batch, models: Mapping[str, Predictor]) -> dict[int, str]:
    """What is wrong with each sample of a batch, by its place in it; samples of which nothing is known are absent.

    Inputs count where some model answers with what is not finite (or no model can be asked): a model may read NaN as
    "missing".
    """
    bare = batch if not batch.tickets else batch.take(slice(None))
    said = {name: _rows(_tensors(model(bare)), len(batch), below=False) for name, model in models.items()}
    inputs = _rows(_values(batch.inputs), len(batch))
    if said:
        inputs &= np.logical_or.reduce(list(said.values()))
    targets = _rows(_values(batch.target), len(batch)) & _labelled(batch)
    found = {int(row): "its target is not finite" for row in np.flatnonzero(targets)}
    for name, rows in said.items():
        if name != STUDENT:
            found |= {
                int(row): f"teacher {name} answers with numbers that are not finite" for row in np.flatnonzero(rows)
            }
    own = said.get(STUDENT, np.zeros(len(batch), bool)) & ~inputs
    if 0 < own.sum() <= len(batch) / 2:  # the weights are sound: others are answered
        most = largest(batch)
        found |= {
            int(row): f"the student's answer is not finite (its inputs reach {most[int(row)]:.3g})"
            for row in np.flatnonzero(own)
        }
    return found | {int(row): "its inputs are not finite" for row in np.flatnonzero(inputs)}


def keys_of(batch: Batch) -> list[str]:
    """The keys of a batch as hexadecimal numbers; where a loader gave none, those of the inputs' content."""
    keys = content_of(next(iter(batch.inputs.values()))) if batch.keys is None else batch.keys
    return [f"{int(key):016x}" for key in keys]


def without(batch: Batch, left_out: Iterable[str]) -> Batch | None:
    """The batch without samples of these keys; None where none is left."""
    bad = set(left_out)
    if isinstance(batch, Padding) or not bad:
        return batch
    keep = [row for row, key in enumerate(keys_of(batch)) if key not in bad]
    if len(keep) == len(batch):
        return batch
    return batch.take(np.array(keep)) if keep else None


def emptied(batch: Batch) -> Padding:
    """What a process trains on to no account where no sample of its part is left."""

    def sound(value: Any) -> Any:
        return (
            torch.nan_to_num(value, 0.0, 0.0, 0.0) if isinstance(value, Tensor) and value.is_floating_point() else value
        )

    one = batch.take(np.array([0])).map(sound)
    return Padding(**{name: getattr(one, name) for name in Batch.__dataclass_fields__})


def largest(batch: Batch) -> np.ndarray:
    """The largest magnitude among the finite inputs of each sample; float64 `[B]`."""
    most = np.zeros(len(batch))
    for tensor in _values(batch.inputs):
        if len(tensor) == len(most) and tensor.is_floating_point() and tensor.numel():
            flat = tensor.detach().reshape(len(tensor), -1).abs()
            finite = torch.where(torch.isfinite(flat), flat, 0).amax(1)
            most = np.maximum(most, finite.double().cpu().numpy())
    return most


def suspicious(batch: Batch) -> bool:
    """Whether inputs or targets hold what is not finite, at the cost of one pass over them."""
    if isinstance(batch, Padding):
        return False
    return any(
        not bool(torch.isfinite(each).all()) for value in (batch.inputs, batch.target) for each in _values(value)
    )


def beyond(batch: Batch, most: float) -> bool:
    """Whether some input in this machine's memory is larger than `most`, or NaN, at the cost of one pass."""
    for each in _values(batch.inputs):
        if each.is_cpu and each.is_floating_point() and each.numel():
            low, high = torch.aminmax(each.detach())
            if not (float(high) <= most and float(low) >= -most):
                return True
    return False


def counted(why: Mapping[str, str]) -> str:
    """Samples that are left out, counted by what is wrong with them, with the keys of the first.

    >>> counted({"01": "its target is not finite", "02": "its target is not finite"})
    '2 samples (01, 02): its target is not finite'
    """
    reasons: dict[str, list[str]] = {}
    for key, reason in why.items():
        reasons.setdefault(reason, []).append(key)
    return "; ".join(
        f"{len(keys)} sample{'s' * (len(keys) > 1)} ({', '.join([*keys[:4], *['...'] * (len(keys) > 4)])}): {reason}"
        for reason, keys in reasons.items()
    )


def _labelled(batch: Batch) -> np.ndarray:
    mask = batch.labelled
    if isinstance(mask, Mapping):
        masks = [np.asarray(each, bool) for each in mask.values()]
        return np.logical_or.reduce(masks) if masks else np.ones(len(batch), bool)
    return np.ones(len(batch), bool) if mask is None else np.asarray(torch.as_tensor(mask).cpu(), bool)


def _rows(tensors: Iterable[Tensor], samples: int, *, below: bool = True) -> np.ndarray:
    """Which samples have a number that is not finite; `below`: -inf counts too (it may stand for a class left out)."""
    found = np.zeros(samples, bool)
    for each in tensors:
        if each.ndim and len(each) == samples and (each.is_floating_point() or each.is_complex()) and each.numel():
            flat = each.detach().reshape(samples, -1)
            wrong = ~torch.isfinite(flat) if below else torch.isnan(flat) | (flat == torch.inf)
            found |= wrong.any(1).cpu().numpy()
    return found


def _values(value: Any) -> Iterator[Tensor]:
    """The tensors and arrays in what bundles several; a list, one entry a sample, as the sums of its entries."""
    if isinstance(value, Mapping):
        for each in value.values():
            yield from _values(each)
    elif isinstance(value, tuple):
        for each in value:
            yield from _values(each)
    elif isinstance(value, Tensor):
        yield value
    elif isinstance(value, np.ndarray) and value.dtype.kind in "fc":
        yield torch.from_numpy(np.ascontiguousarray(value))
    elif isinstance(value, list) and value and all(isinstance(each, Tensor | Mapping | tuple) for each in value):
        yield torch.tensor(
            [sum(float(part.sum()) for part in _values(each) if part.is_floating_point()) for each in value]
        )


def _tensors(said: Outputs) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    said.map(note)
    return found
