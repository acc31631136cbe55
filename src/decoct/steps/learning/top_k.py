"""Tails: whether what a store cut off matters at the temperature at which a student is taught."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from decoct.objectives.base import Objective
from decoct.outputs import Batch, Outputs, Predictor
from decoct.steps.base import Inputs
from decoct.steps.learning.views import stores_of
from decoct.teachers.combining import COMBINED

MOST = 0.5
"""The largest part of the softened distribution that may lie in the tail without a word."""


def warn_of_tails(objective: Objective, inputs: Inputs, teachers: Mapping[str, Predictor], batch: Batch) -> None:
    """Warns where a term softens a stored teacher so far that most of its distribution lies in the tail.

    What a store of the k largest probabilities knows of the tail is its sum; at a high temperature that is nearly all.
    """
    for role, store in stores_of(inputs).items():
        keep = store.meta["keep"]
        if keep["use"] != "top_k" or not store.meta["classes"] or len(store.meta["classes"]) <= keep["k"]:
            continue
        outputs = teachers[role](batch)
        for term in objective.flat():
            temperature = term.plain().get("temperature")
            reads_it = term.taught and term.teacher in (None, role, COMBINED)
            if not reads_it or not isinstance(temperature, int | float):
                continue
            left = tail_share(outputs, keep["k"], float(temperature))
            if left > MOST:
                warnings.warn(
                    f"{term.label}: at temperature {temperature:g} {100 * left:.0f} % of what the store {role!r} says "
                    f"lies in classes beyond the {keep['k']} that it keeps; take a temperature nearer to 1, or more",
                    stacklevel=3,
                )


def tail_share(outputs: Outputs, k: int, temperature: float) -> float:
    """Mean over samples of what the softened distribution gives to all but its k likeliest classes.

    >>> import torch
    >>> round(tail_share(Outputs(torch.zeros(1, 4)), 1, 2.0), 2)
    0.75
    """
    if outputs.top is not None:
        rest = outputs.top.log_rest(temperature)
        kept = (outputs.top.log_probs / temperature).logsumexp(-1)
        return float((rest - rest.logaddexp(kept)).exp().mean())
    if outputs.logits is None:
        return 0.0
    return float(1 - (outputs.logits.float() / temperature).softmax(-1).topk(k, -1).values.sum(-1).mean())
