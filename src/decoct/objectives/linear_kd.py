"""Divergences from hidden states and head weights, without ever holding all the logits."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from decoct.errors import RecipeError, did_you_mean
from decoct.objectives import _divergence
from decoct.objectives._numeric import full_precision, promote, refuse_temperature, refuse_unlike_mask, shape
from decoct.objectives._shapes import HeadOfLogits, Loss, Mask, TeacherHeadOfLogits, TeacherTokenwise, Tokenwise

Differentiate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From student and teacher logits `[N, V]` the summed divergence and its gradient by the student's logits."""

DIVERGENCES: dict[str, Callable[..., Tensor]] = {
    "adaptive_kl": _divergence.adaptive_kl,
    "forward_kl": _divergence.forward_kl,
    "jsd": _divergence.jsd,
    "reverse_kl": _divergence.reverse_kl,
    "skew_kl": _divergence.skew_kl,
    "skew_reverse_kl": _divergence.skew_reverse_kl,
    "total_variation": _divergence.total_variation,
}


@full_precision
def linear_kd_loss(
    student_hidden: Tokenwise,
    student_weight: HeadOfLogits,
    teacher_hidden: TeacherTokenwise,
    teacher_weight: TeacherHeadOfLogits,
    *,
    divergence: str = "forward_kl",
    temperature: float = 1.0,
    mask: Mask | None = None,
    chunk: int = 256,
    **options: Any,
) -> Loss:
    """Mean over tokens of a divergence between logits = hidden · weightᵀ, `chunk` tokens at a time.

    Hidden `[*B, D]`, weight `[V, D]`; D may differ between student and teacher, V may not. `mask` `[*B]` bool.
    `divergence`: "forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "adaptive_kl" or "total_variation";
    `options` are its own (`beta`, `alpha`, `top_k`, `tail`). Value and gradients (student hidden and weight) equal the
    plain function's on the whole logits. The gradients are taken in the forward pass, so that memory holds
    `chunk` × V logits and one gradient of each input; a second derivative is not available. Without gradients only the
    value is computed.

    >>> h, w = torch.randn(5, 3), torch.randn(7, 3)
    >>> linear_kd_loss(h, w, h, w, divergence="jsd", chunk=2).item()
    0.0
    """
    _refuse_options(divergence, options, temperature, chunk)
    _refuse_shapes(student_hidden, student_weight, teacher_hidden, teacher_weight, mask)
    tensors = promote(student_hidden, student_weight, teacher_hidden, teacher_weight)
    own, theirs = _rows(tensors[0], mask), _rows(tensors[2].detach(), mask)
    head, teacher_head = tensors[1], tensors[3].detach()

    def per_token(student: Tensor, teacher: Tensor) -> Tensor:
        return DIVERGENCES[divergence](student, teacher, temperature=temperature, **options)

    def differentiate(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        if divergence == "forward_kl":
            return _divergence.forward_kl_and_gradient(student, teacher, temperature)
        with torch.enable_grad():
            leaf = student.requires_grad_()
            value = per_token(leaf, teacher).sum()
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    if torch.is_grad_enabled() and (student_hidden.requires_grad or student_weight.requires_grad):
        result = _ChunkedHead.apply(own, head, theirs, teacher_head, differentiate, chunk)
        assert isinstance(result, Tensor)
        return result
    total = own.new_zeros(())
    for start in range(0, len(own), chunk):
        part = slice(start, start + chunk)
        total += per_token(own[part] @ head.T, theirs[part] @ teacher_head.T).sum()
    return total / max(len(own), 1)


def _refuse_shapes(
    student_hidden: Tensor, student_weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, mask: Tensor | None
) -> None:
    name = "linear_kd_loss"
    for who, hidden, weight in (
        ("student", student_hidden, student_weight),
        ("teacher", teacher_hidden, teacher_weight),
    ):
        if weight.ndim != 2 or hidden.ndim < 1 or hidden.shape[-1] != weight.shape[-1]:
            raise RecipeError(f"{name}: {who} hidden {shape(hidden)} and weight {shape(weight)}; [*B, D] and [V, D]")
    if student_hidden.shape[:-1] != teacher_hidden.shape[:-1]:
        raise RecipeError(
            f"{name}: student hidden {shape(student_hidden)} and teacher hidden {shape(teacher_hidden)}; "
            f"the leading axes must be equal"
        )
    if len(student_weight) != len(teacher_weight):
        raise RecipeError(
            f"{name}: student weight {shape(student_weight)} and teacher weight {shape(teacher_weight)}; "
            f"the vocabularies must be equal: slice both to the tokens they share"
        )
    if mask is not None:
        refuse_unlike_mask(name, mask, student_hidden.shape[:-1])


def _refuse_options(divergence: str, options: dict[str, Any], temperature: float, chunk: int) -> None:
    refuse_temperature("linear_kd_loss", temperature)
    if divergence not in DIVERGENCES:
        raise RecipeError(f"linear_kd_loss: divergence is {divergence!r}; {did_you_mean(divergence, DIVERGENCES)}")
    if chunk < 1:
        raise RecipeError(f"linear_kd_loss: chunk is {chunk}; allowed: 1 or more tokens")
    known = set(inspect.signature(DIVERGENCES[divergence]).parameters) - {"student", "teacher", "temperature"}
    for each in options:
        if each not in known:
            raise RecipeError(f"linear_kd_loss: {each} is no option of {divergence}; {did_you_mean(each, known)}")


def _rows(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """`[N, D]`, the tokens kept."""
    return hidden.reshape(-1, hidden.shape[-1]) if mask is None else hidden[mask]


def _sweep(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    differentiate: Differentiate,
    chunk: int,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The mean over all tokens, and its gradients by hidden and weight where wanted."""
    count = max(len(hidden), 1)
    total = hidden.new_zeros(())
    by_hidden = torch.empty_like(hidden) if wanted[0] else None
    by_weight = torch.zeros_like(weight) if wanted[1] else None
    for start in range(0, len(hidden), chunk):
        part = slice(start, start + chunk)
        teacher = teacher_hidden[part] @ teacher_weight.T
        student = hidden[part] @ weight.T
        value, gradient = differentiate(student, teacher)
        total += value / count
        gradient /= count
        if by_hidden is not None:
            torch.mm(gradient, weight, out=by_hidden[part])
        if by_weight is not None:
            by_weight.addmm_(gradient.T, hidden[part])
    return total, by_hidden, by_weight


class _ChunkedHead(torch.autograd.Function):
    """The mean divergence over tokens; its backward pass only scales gradients already taken."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        differentiate: Differentiate,
        chunk: int,
    ) -> Tensor:
        wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1])
        total, by_hidden, by_weight = _sweep(
            hidden.detach(), weight.detach(), teacher_hidden, teacher_weight, differentiate, chunk, wanted
        )
        ctx.save_for_backward(by_hidden, by_weight)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        by_hidden, by_weight = ctx.saved_tensors
        scaled = tuple(None if each is None else each * gradient for each in (by_hidden, by_weight))
        return (*scaled, None, None, None, None)
