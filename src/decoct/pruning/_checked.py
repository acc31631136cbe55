"""Cutting with a check: a cut after which the network does not run is taken back, and its reason kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import nn

from decoct.models.modes import evaluating, training_branches
from decoct.pruning._atoms import Group
from decoct.pruning._cut import cut
from decoct.pruning._graph import FAILURES, Shapes, tensors_in
from decoct.pruning._scores import removed
from decoct.training.compression import Evidence

Chosen = tuple[Group, np.ndarray]


def cut_checked(
    module: nn.Module, chosen: Sequence[Chosen], evidence: Evidence, wanted: Shapes | None = None
) -> tuple[nn.Module, dict[int, str]]:
    """A copy without the chosen units, and the numbers of the groups that had to stay, with the reason.

    Where the network does not run after all cuts, or gives outputs of other shapes than `wanted` (those that it gives
    now), they are tried one after the other. It must run in eval mode, and on the branches that only training has where
    it did before.
    """
    wanted = shapes(module, evidence) if wanted is None else wanted
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
    module: nn.Module, chosen: Sequence[Chosen], evidence: Evidence, wanted: Shapes
) -> tuple[nn.Module, str | None]:
    trial = copy.deepcopy(module)
    cut(trial, removed(chosen))
    return trial, problem_of(trial, evidence, wanted)


def problem_of(module: nn.Module, evidence: Evidence, wanted: Shapes) -> str | None:
    """Why a changed network does not do what it did before; None where its outputs have the shapes `wanted`."""
    try:
        if _of_pass(module, evidence, evaluating) != wanted.evaluating:
            return "the outputs would change their shape"
        if wanted.training is not None and _of_pass(module, evidence, training_branches) != wanted.training:
            return "the outputs of training would change their shape"
    except FAILURES as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"its size is written into the forward pass: {lines[0][:160]}"
    return None


def shapes(module: nn.Module, evidence: Evidence) -> Shapes:
    """What a network gives now."""
    found = _of_pass(module, evidence, evaluating)
    try:
        return Shapes(found, _of_pass(module, evidence, training_branches))
    except FAILURES:
        return Shapes(found, None)


def _of_pass(
    module: nn.Module, evidence: Evidence, mode: Callable[[nn.Module], AbstractContextManager[None]]
) -> list[torch.Size]:
    with torch.no_grad(), mode(module):
        return [each.shape for each in tensors_in(evidence.run(module))]
