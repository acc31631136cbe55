"""Terms that would teach the student nothing: what they read of it has a value and no gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from decoct.capture import CUT_OFF, why_no_gradient
from decoct.errors import RecipeError
from decoct.objectives.base import Objective
from decoct.objectives.sources import role_and_source
from decoct.outputs import Needs, Outputs


def read_features(needs: Mapping[str, Needs]) -> tuple[tuple[str, str], ...]:
    """The features that a term reads of the student, each with the source that it is of ("" for the main data)."""
    found = [(role_and_source(role), each) for role, each in needs.items()]
    return tuple((source or "", path) for (of, source), each in found if of == "student" for path in each.features)


def refuse_without_gradient(objective: Objective, read: tuple[tuple[str, str], ...], student: Outputs) -> None:
    """RecipeError where gradients are wanted and a feature of the student that a term reads has none.

    Outputs of which nothing has a gradient, and that no forward pass gave (a test, a file), are let pass.
    """
    if not torch.is_grad_enabled():
        return
    for source, path in read:
        said = student.also.get(source or objective.source or "", student)
        feature = said.features.get(path)
        if feature is None or feature.requires_grad:
            continue
        reason = why_no_gradient(feature)
        if reason is None and not _has_gradient(student):
            continue
        raise RecipeError(
            f"{objective.label}: the student's feature {path!r} has a value and no gradient, so this term would teach "
            f"the student nothing: {reason or CUT_OFF}"
        )


def refuse_constant(objective: Objective, value: Tensor, student: Outputs) -> None:
    """RecipeError where a term has a value, and no gradient though the student has."""
    if value.requires_grad or not torch.is_grad_enabled() or not _has_gradient(student) or not bool(value != 0):
        return
    raise RecipeError(
        f"{objective.label}: this term has a value and no gradient, so it would teach the student nothing: what it "
        "reads of the student was detached (.detach(), torch.no_grad()) or comes from frozen layers alone; mend the "
        "student's forward, or leave the term out"
    )


def _has_gradient(student: Outputs) -> bool:
    return any(each.requires_grad for each in student.tensors())
