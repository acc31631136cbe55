"""What all losses share: float promotion, shape checks, masks, means over items, sums that survive -inf."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from decoct.errors import RecipeError

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Runs `function` with autocast off, so that what it casts up stays up."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        device = _device_type(args)
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return function(*args, **kwargs)
        return function(*args, **kwargs)

    return run


def _device_type(args: tuple[object, ...]) -> str:
    for value in args:
        if isinstance(value, tuple | list):
            return _device_type(tuple(value))
        if isinstance(value, Tensor):
            return value.device.type
    return "cpu"


def promote(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in their common floating type, float32 at least."""
    if all(each.dtype == torch.float32 for each in tensors):
        return tensors
    dtype = torch.float32
    for each in tensors:
        dtype = torch.promote_types(dtype, each.dtype)
    return tuple(each.to(dtype) for each in tensors)


def shape(value: Tensor) -> str:
    """A shape as it is written in messages."""
    return str(list(value.shape))


def refuse_unlike(loss: str, student: Tensor, teacher: Tensor, advice: str = "") -> None:
    """RecipeError where the shapes differ."""
    if student.shape != teacher.shape:
        tail = f"; {advice}" if advice else ""
        raise RecipeError(
            f"{loss}: student {shape(student)} and teacher {shape(teacher)}; the shapes must be equal{tail}"
        )


def refuse_unlike_mask(loss: str, mask: Tensor, items: torch.Size) -> None:
    """RecipeError where the mask is not bool `[*B]`."""
    if mask.dtype != torch.bool:
        raise RecipeError(f"{loss}: mask is {mask.dtype}; allowed: torch.bool, True where an item counts")
    if mask.shape != items:
        raise RecipeError(f"{loss}: mask {shape(mask)} and items {list(items)}; the shapes must be equal")


def refuse_unless(loss: str, setting: str, value: float, holds: bool, allowed: str) -> None:
    """RecipeError where a hyperparameter is out of range."""
    if not holds:
        raise RecipeError(f"{loss}: {setting} is {value}; allowed: {allowed}")


def refuse_temperature(loss: str, temperature: float) -> None:
    """RecipeError where the temperature is not a positive number."""
    refuse_unless(loss, "temperature", temperature, 0 < temperature < float("inf"), "a number above 0")


def logit_pair(
    loss: str, student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Student and teacher logits checked, cast up, teacher detached, items that do not count set to 0.

    Setting them to 0 keeps what stands there (NaN, inf) out of the value and out of the gradient.
    """
    refuse_temperature(loss, temperature)
    if student.ndim == 0:
        raise RecipeError(f"{loss}: student {shape(student)}; allowed: [*B, C], class axis last")
    refuse_unlike(loss, student, teacher, "map the teacher's classes to the student's first")
    student, teacher = promote(student, teacher)
    teacher = teacher.detach()
    if mask is not None:
        refuse_unlike_mask(loss, mask, student.shape[:-1])
        out = ~mask.unsqueeze(-1)
        student, teacher = student.masked_fill(out, 0.0), teacher.masked_fill(out, 0.0)
    return student, teacher


def class_target(loss: str, student: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Class ids `[*B]`, 0 where the mask is False; RecipeError for ids outside the classes."""
    target = class_ids(loss, student, target, mask)
    refuse_outside(loss, student, target)
    return target


def class_ids(loss: str, student: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Integers `[*B]`, 0 where the mask is False; whether they are classes is left to `refuse_outside`."""
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise RecipeError(f"{loss}: target is {target.dtype}; allowed: integer class ids [*B]")
    if target.shape != student.shape[:-1]:
        raise RecipeError(f"{loss}: student {shape(student)} and target {shape(target)}; target must be [*B]")
    target = target.long()
    if mask is not None:
        target = target.masked_fill(~mask, 0)
    return target


def refuse_outside(loss: str, student: Tensor, target: Tensor) -> None:
    """RecipeError for ids outside the classes.

    On an accelerator the check is a device-side assertion, so that no step waits for it.
    """
    inside = ((target >= 0) & (target < student.shape[-1])).all()
    if target.device.type != "cpu":
        torch._assert_async(inside, f"{loss}: a target lies outside the classes; mask it")
    elif not inside:
        worst = int(target.min()) if int(target.min()) < 0 else int(target.max())
        raise RecipeError(
            f"{loss}: target {worst} lies outside the {student.shape[-1]} classes; leave such items out with `mask`"
        )


class Weighing:
    """Weights of items, `[*B]` or of a feature's shape with 1 for its channels, and how often a mean took them."""

    def __init__(self, label: str, weights: Tensor) -> None:
        self.label, self.weights, self.uses = label, weights, 0

    def apply(self, values: Tensor) -> Tensor:
        """values · weights; RecipeError where the values are not of these items."""
        weights = self.weights
        fits = weights.ndim <= values.ndim and all(a in (1, b) for a, b in zip(weights.shape, values.shape))
        if not fits:
            raise RecipeError(
                f"{self.label}: refine weighs {shape(weights)}, and this objective's mean is over {shape(values)}; "
                "take a refinement that leaves items out, or another objective"
            )
        self.uses += 1
        weights = weights.reshape(weights.shape + (1,) * (values.ndim - weights.ndim)).to(values.dtype)
        return torch.where(weights == 0, 0.0, values * weights)


_WEIGHING: ContextVar[Weighing | None] = ContextVar("weighing", default=None)


@contextmanager
def weighing(label: str, weights: Tensor | None) -> Iterator[None]:
    """Within the body, each mean over items is Σ weight · value / number of items; RecipeError where none was taken."""
    found = None if weights is None else Weighing(label, weights)
    token = _WEIGHING.set(found)
    try:
        yield
    finally:
        _WEIGHING.reset(token)
    if found is not None and not found.uses:
        raise RecipeError(
            f"{label}: refine weighs items, and this objective takes no mean over them; take a refinement that leaves "
            "items out, or another objective"
        )


def weighed() -> bool:
    """Whether a mean over items is to take weights now."""
    return _WEIGHING.get() is not None


def item_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over items, or over those that the mask keeps; 0 with a gradient of 0 when there are none."""
    weights = _WEIGHING.get()
    if weights is not None:
        values = weights.apply(values)
    if mask is None:
        return values.mean() if values.numel() else values.sum()
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def element_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over the elements of the items kept; the mask covers the leading axes."""
    if mask is None:
        return item_mean(values)
    return item_mean(values, mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)).expand_as(values))


def weigh(p: Tensor, values: Tensor) -> Tensor:
    """p · values, 0 where p is 0, whatever the value (0 · log 0 = 0)."""
    return p * torch.where(p == 0, 0.0, values)


def kl_rows(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a‖b) over the last axis, from logarithms; classes with a = 0 contribute nothing."""
    a = log_a.exp()
    return weigh(a, log_a - log_b).sum(-1)


def log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / T) over the last axis."""
    return F.log_softmax(logits / temperature if temperature != 1 else logits, dim=-1)


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """x / max(‖x‖₂, 1e-12), with a gradient of 0 through the norm of a zero vector."""
    return x / norm(x, dim).clamp(min=1e-12)


def norm(x: Tensor, dim: int = -1) -> Tensor:
    """‖x‖₂ with the axis kept, and a gradient of 0 at 0.

    >>> x = torch.zeros(1, 3, requires_grad=True)
    >>> norm(x).sum().backward(); x.grad
    tensor([[0., 0., 0.]])
    """
    return torch.linalg.vector_norm(x, dim=dim, keepdim=True)


def without_target(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The logits with the target's class at −inf, so that softmaxes drop it, and `[*B]` bool where others are left.

    A row in which nothing is left becomes all 0, so that its softmax is defined; the caller leaves it out.
    """
    rest = logits.scatter(-1, target.unsqueeze(-1), -torch.inf)
    left = (rest != -torch.inf).any(-1)
    return rest.masked_fill(~left.unsqueeze(-1), 0.0), left


def kept_rows(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows `[N, C]` of `[*B, C]`, 0 where the mask is False, and how many are kept (0-dim, of the values' type)."""
    rows = values.reshape(-1, values.shape[-1])
    if mask is None:
        return rows, rows.new_tensor(float(len(rows)))
    flat = mask.reshape(-1, 1)
    return torch.where(flat, rows, 0.0), flat.sum().to(rows.dtype)
