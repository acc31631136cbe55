"""Feature maps and tokens: one view of both, pooling to a common size, work in bounded memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from decoct.errors import RecipeError
from decoct.objectives._numeric import promote, refuse_unlike, shape

BUDGET = 1 << 22
"""Elements of an intermediate tensor above which a loss works in pieces."""


def feature_pair(loss: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both cast up, the teacher detached."""
    student, teacher = promote(student, teacher)
    return student, teacher.detach()


def equal_pair(loss: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """As `feature_pair`; RecipeError where the shapes differ."""
    refuse_unlike(loss, student, teacher, "bridge them with an adapter")
    return feature_pair(loss, student, teacher)


def as_map(loss: str, x: Tensor) -> Tensor:
    """`[B, C, P]` of a map `[B, C, H, W]` or tokens `[B, N, D]` (D channels, N positions)."""
    if x.ndim == 4:
        return x.flatten(2)
    if x.ndim == 3:
        return x.transpose(1, 2)
    raise RecipeError(f"{loss}: features {shape(x)}; allowed: a map [B, C, H, W] or tokens [B, N, D]")


def pooled(loss: str, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps of one size: where H differs, the larger is adaptively average-pooled to the smaller."""
    if a.ndim == 4 and b.ndim == 4 and a.shape[2] != b.shape[2]:
        if a.shape[2] > b.shape[2]:
            return F.adaptive_avg_pool2d(a, (b.shape[2], b.shape[3])), b
        return a, F.adaptive_avg_pool2d(b, (a.shape[2], a.shape[3]))
    return a, b


def map_pair(loss: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both as `[B, C, P]` with equal B and P, pooled where H differs; RecipeError naming both shapes."""
    student, teacher = feature_pair(loss, student, teacher)
    s, t = pooled(loss, student, teacher)
    s, t = as_map(loss, s), as_map(loss, t)
    if len(s) != len(t) or s.shape[2] != t.shape[2]:
        raise RecipeError(f"{loss}: student {shape(student)} and teacher {shape(teacher)}; positions must match")
    return s, t


def vector_pair(loss: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both flattened to `[B, D]`, with equal B; D may differ."""
    if student.ndim < 1 or teacher.ndim < 1 or len(student) != len(teacher):
        raise RecipeError(f"{loss}: student {shape(student)} and teacher {shape(teacher)}; batches must be equal")
    student, teacher = feature_pair(loss, student, teacher)
    return student.reshape(len(student), -1), teacher.reshape(len(teacher), -1)


def in_pieces(function: Callable[..., Tensor], count: int, elements: int, *inputs: Tensor) -> Tensor:
    """Σ function(start, stop, *inputs) over pieces of `count`, each of `elements` per unit and within the budget.

    Beyond one piece each is computed again in the backward pass, so that only one is in memory at a time.
    """
    step = max(1, BUDGET // max(elements, 1))
    if step >= count:
        return function(0, count, *inputs)
    pieces = []
    for start in range(0, count, step):
        stop = min(start + step, count)
        piece = checkpoint(function, start, stop, *inputs, use_reentrant=False, preserve_rng_state=False)
        assert isinstance(piece, Tensor)
        pieces.append(piece)
    return torch.stack(pieces).sum()
