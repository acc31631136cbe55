"""Teachers that repeat the targets of the rows that they were fitted on, and so teach no more than these."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from decoct.artifact import Artifact
from decoct.data.base import Split
from decoct.models.black_box import BlackBox
from decoct.models.remote import Remote
from decoct.outputs import Dense, Outputs, Predictor
from decoct.steps.base import Context, Inputs
from decoct.steps.learning.batches import EVALUATION_BATCH, splits_of
from decoct.steps.learning.views import STORE
from decoct.training.engine import Engine

LOOKED_AT = 512
"""Samples of a split that are looked at."""
NEAR_ONE_HOT = 0.99
"""The mean largest probability from which on answers are near one-hot."""
LESS_SURE = 0.03
"""By how much less sure a teacher is of samples that it has not seen, where it memorised the others."""
EXACT = 0.01
"""The mean squared error, of that on samples that were held out, below which numbers are repeated."""


def warn_of_memorised(inputs: Inputs, teachers: Mapping[str, Predictor], context: Context, engine: Engine) -> None:
    """Warns where a teacher is near one-hot on what it teaches and not elsewhere, or repeats its numbers.

    Looked at are teachers that stand here, on a few training and validation samples; not those behind an address, which
    are asked no more than is needed, nor stores. Where nothing is held out, estimators alone are warned of.
    """
    splits = splits_of(context)
    if not worth_a_look(context) or not context.processes.first:
        return
    train, held_out = splits["train"], splits.get("validation")
    for role, predict in teachers.items():
        value = inputs.get(role)
        if value is None or not stands_here(value):
            continue
        seen = _told(predict, train, context, engine)
        unseen = _told(predict, held_out, context, engine) if isinstance(held_out, Split) and len(held_out) else None
        message = _memorised(seen, unseen, _kind(value) == "estimator", numbers=context.task.answer.numbers)
        if message is not None:
            what = "give it folds, or more rows to a leaf" if _kind(value) == "estimator" else "train it for less time"
            warnings.warn(
                f"{role} {message}: what it says of the training samples repeats their targets, and teaches no more "
                f"than these; {what}, or label samples that it was not trained on",
                stacklevel=3,
            )


def worth_a_look(context: Context) -> bool:
    """Whether the training samples can be asked about by themselves, and have one answer each."""
    answer = context.task.answer
    known = answer.item == "sample" and not answer.parts and (answer.distribution or answer.numbers)
    return known and isinstance(splits_of(context).get("train"), Split)


def stands_here(value: object) -> bool:
    """Whether a teacher answers at no cost: a model, file or estimator, no address, function or store."""
    return not isinstance(value, Remote | BlackBox) and _kind(value) != STORE


def _kind(value: object) -> str:
    return value.kind if isinstance(value, Artifact) else "model"


def _memorised(seen: float | None, unseen: float | None, estimator: bool, *, numbers: bool) -> str | None:
    """What gives a teacher away, from what `_told` of samples that it may have seen and of others."""
    if seen is None or (unseen is None and (numbers or not estimator)):
        return None
    if numbers:
        assert unseen is not None
        if not unseen or not seen < EXACT * unseen:
            return None
        return f"errs on the training samples by {seen:.2g} of its squared error {unseen:.2g} on those held out"
    beside = "" if unseen is None else f" (of {unseen:.3f} on those held out)"
    if seen < NEAR_ONE_HOT or (unseen is not None and seen - unseen < LESS_SURE):
        return None
    return f"is near one-hot on what it teaches, with a largest probability of {seen:.3f} in the mean{beside}"


def _told(predict: Predictor, split: Split, context: Context, engine: Engine) -> float | None:
    """Of classes the mean largest probability, of numbers the mean squared error; None where there is neither."""
    places = np.unique(np.linspace(0, len(split) - 1, min(LOOKED_AT, len(split))).astype(np.int64))
    values: list[torch.Tensor] = []
    for start in range(0, len(places), EVALUATION_BATCH):
        batch = engine.move(context.collate(split, places[start : start + EVALUATION_BATCH]))
        outputs = predict(replace(batch, tickets={}))
        if not isinstance(outputs.distribution, Dense):
            return None
        found = _of_each(outputs, batch.target, numbers=context.task.answer.numbers)
        values.append(found[found.isfinite()].cpu())
    every = torch.cat(values)
    return float(every.mean()) if len(every) else None


def _of_each(outputs: Outputs, target: torch.Tensor, *, numbers: bool) -> torch.Tensor:
    assert outputs.logits is not None
    logits = outputs.logits.detach().double()
    if numbers:
        return (logits - target.double().reshape(logits.shape)).square().mean(-1)
    return logits.softmax(-1).amax(-1)
