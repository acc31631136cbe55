"""Cutting with a check: a cut after which the network does not run is taken back, and its reason kept."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from decoct.models.modes import evaluating
from decoct.pruning._atoms import Group
from decoct.pruning._cut import cut
from decoct.pruning._graph import tensors_in
from decoct.pruning._scores import removed
from decoct.training.compression import Evidence

Chosen = tuple[Group, np.ndarray]
FAILURES = (RuntimeError, ValueError, IndexError, TypeError, AssertionError, AttributeError)
"""What a forward pass raises where a size is written into it."""


def cut_checked(module: nn.Module, chosen: Sequence[Chosen], evidence: Evidence) -> tuple[nn.Module, dict[int, str]]:
    """A copy without the chosen units, and the numbers of the groups that had to stay, with the reason.

    Where the network does not run after all cuts, or gives outputs of other shapes, they are tried one after the other.
    """
    wanted = _shapes(module, evidence)
    whole, problem = _tried(module, chosen, evidence, wanted)
    if problem is None:
        return whole, {}
    good: list[Chosen] = []
    best, failed = copy.deepcopy(module), {}
    for number, each in enumerate(chosen):
        if not len(each[1]):
            continue
        trial, problem = _tried(module, [*good, each], evidence, wanted)
        if problem is None:
            good.append(each)
            best = trial
        else:
            failed[number] = problem
    return best, failed


def _tried(
    module: nn.Module, chosen: Sequence[Chosen], evidence: Evidence, wanted: Sequence[torch.Size]
) -> tuple[nn.Module, str | None]:
    trial = copy.deepcopy(module)
    cut(trial, removed(chosen))
    try:
        found = _shapes(trial, evidence)
    except FAILURES as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return trial, f"its size is written into the forward pass: {lines[0][:160]}"
    return trial, None if found == wanted else "the outputs would change their shape"


def _shapes(module: nn.Module, evidence: Evidence) -> list[torch.Size]:
    with torch.no_grad(), evaluating(module):
        return [each.shape for each in tensors_in(evidence.run(module))]
