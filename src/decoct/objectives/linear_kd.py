"""Divergences from hidden states and head weights, without ever holding all the logits."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from decoct.errors import RecipeError, did_you_mean
from decoct.objectives._ahead import Sums, run_ahead
from decoct.objectives._closed_form import derivative
from decoct.objectives._divergence import DIVERGENCES
from decoct.objectives._head import (
    Gradients,
    Head,
    Labels,
    Online,
    Recipe,
    Wanted,
    refuse_other_types,
    side_of,
    sweep,
    tokens_at_once,
)
from decoct.objectives._numeric import class_target, refuse_temperature, refuse_unless, refuse_unlike_mask, shape
from decoct.objectives._shapes import HeadOfLogits, Loss, Mask, Target, TeacherHeadOfLogits, TeacherTokenwise, Tokenwise
from decoct.objectives.top_k_kl import without_tail
from decoct.outputs import TopK

P = ParamSpec("P")
R = TypeVar("R")
NAME = "linear_kd_loss"
TeacherLogits = Callable[[slice], Tensor]
"""Gives the teacher's logits `[n, V]` of a slice of the tokens kept, in their order."""
Backend = Literal["auto", "torch", "triton"]


class LinearKD(NamedTuple):
    """`total` = divergence + weight · cross_entropy, with a gradient; the two parts without one, for the log."""

    total: Tensor
    divergence: Tensor
    cross_entropy: Tensor


def _outside_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Runs `function` eagerly under torch.compile, whose graph breaks there."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            eager: Callable[P, R] = torch.compiler.disable(function)
            return eager(*args, **kwargs)
        return function(*args, **kwargs)

    return run


def linear_kd_loss(
    student_hidden: Tokenwise,
    student_weight: HeadOfLogits | Head,
    teacher_hidden: TeacherTokenwise | TopK | TeacherLogits,
    teacher_weight: TeacherHeadOfLogits | Head | None = None,
    *,
    divergence: str = "forward_kl",
    temperature: float = 1.0,
    mask: Mask | None = None,
    labels: Labels | Target | None = None,
    chunk: int | None = None,
    chunk_bytes: int | None = None,
    backend: Backend = "auto",
    **options: Any,
) -> Loss:
    """Mean over tokens of a divergence between logits = hidden · weightᵀ, a chunk of tokens at a time.

    Hidden `[*B, D]`, weight `[V, D]` or a `Head` with bias, scale and soft cap; D may differ between student and
    teacher, V may not. `mask` `[*B]` bool. The teacher: hidden states and weight, or a function that gives the logits
    `[n, V]` of a slice of the tokens kept, or a `TopK` of `[*B]` (with "forward_kl").
    `divergence`: "forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "adaptive_kl" or "total_variation";
    `options` are its own (`beta`, `alpha`, `top_k`, `tail`). `labels` (class ids `[*B]` or `Labels`) adds the hard
    cross-entropy of the same logits, the mean over tokens kept that have a label, times its weight. Value and gradients
    (student hidden, weight and bias) equal the plain functions' on the whole logits. The gradients are taken in the
    forward pass, so that memory holds one chunk's logits and one gradient of each input; a second derivative is not
    available. What needs no gradient gets none; without gradients only the value is computed. `chunk` tokens, by
    default as many as `chunk_bytes` has room for (80 MiB on the CPU, but at most 128 tokens there; 1 GiB on an
    accelerator).
    Precision: products in the common type of hidden and weight (under autocast in its type, except float64); logits,
    loss and the sums of the gradients in float32 at least, which is finer than autograd on half-precision logits.
    `backend`: "torch"; "triton", a fused kernel for forward_kl on CUDA; "auto" is "torch" so far, since the kernel has
    been tested in Triton's interpreter and not been measured on a GPU. Under torch.compile it runs outside the graph.

    >>> h, w = torch.randn(5, 3), torch.randn(7, 3)
    >>> linear_kd_loss(h, w, h, w, divergence="jsd", chunk=2).item()
    0.0
    """
    found = linear_kd_parts(
        student_hidden,
        student_weight,
        teacher_hidden,
        teacher_weight,
        divergence=divergence,
        temperature=temperature,
        mask=mask,
        labels=labels,
        chunk=chunk,
        chunk_bytes=chunk_bytes,
        backend=backend,
        **options,
    )
    return found.total


@_outside_graphs
def linear_kd_parts(
    student_hidden: Tokenwise,
    student_weight: HeadOfLogits | Head,
    teacher_hidden: TeacherTokenwise | TopK | TeacherLogits,
    teacher_weight: TeacherHeadOfLogits | Head | None = None,
    *,
    divergence: str = "forward_kl",
    temperature: float = 1.0,
    mask: Mask | None = None,
    labels: Labels | Target | None = None,
    chunk: int | None = None,
    chunk_bytes: int | None = None,
    backend: Backend = "auto",
    **options: Any,
) -> LinearKD:
    """What `linear_kd_loss` gives, with its two parts for the log.

    >>> h, w = torch.randn(5, 3), torch.zeros(7, 3)
    >>> found = linear_kd_parts(h, w, h, w, labels=Labels(torch.zeros(5, dtype=torch.long), weight=0.5))
    >>> tuple(round(each.item(), 4) for each in found)
    (0.973, 0.0, 1.9459)
    """
    labels = Labels(labels) if isinstance(labels, Tensor) else labels
    refuse_other_types(NAME, student_hidden, student_weight, teacher_hidden, teacher_weight, mask=mask, labels=labels)
    own = _head_of(student_weight, "student", student_hidden)
    _refuse_options(divergence, options, temperature, chunk, chunk_bytes)
    if mask is not None:
        refuse_unlike_mask(NAME, mask, student_hidden.shape[:-1])
    hidden = _rows(student_hidden, mask)
    teacher = _teacher(teacher_hidden, teacher_weight, student_hidden, own, mask)
    if isinstance(teacher, TopK) and divergence != "forward_kl":
        raise RecipeError(
            f"{NAME}: divergence is {divergence!r}, and the teacher keeps only the {teacher.ids.shape[-1]} largest "
            "probabilities; allowed: 'forward_kl'"
        )
    dtype = _product_type(hidden, own.weight)
    device = hidden.device.type
    with torch.autocast(device, enabled=False):
        recipe = Recipe(
            divergence,
            temperature,
            derivative(divergence, options),
            lambda student, teacher: DIVERGENCES[divergence](student, teacher, temperature=temperature, **options),
            *_hard(labels, student_hidden, own, mask, hidden),
            triton=_uses_triton(backend, divergence, own, teacher, hidden),
        )

        def run(wanted: Wanted) -> Sums:
            soft, hard, found = _swept(hidden, own, dtype, teacher, recipe, chunk, chunk_bytes, wanted)
            return (soft + hard, soft, hard), found

        total, soft, hard = run_ahead(hidden, own, run)
    return LinearKD(total, soft, hard if labels is None else hard / labels.weight)


def _swept(
    hidden: Tensor,
    head: Head,
    dtype: torch.dtype,
    teacher: Online | TopK,
    recipe: Recipe,
    chunk: int | None,
    chunk_bytes: int | None,
    wanted: Wanted,
) -> tuple[Tensor, Tensor, Gradients]:
    own = side_of(hidden, head, dtype)
    return sweep(own, teacher, recipe, chunk or tokens_at_once(own, [teacher], chunk_bytes), wanted)


def _product_type(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The type in which products are taken: that of autocast, where it is on and would change it."""
    dtype, device = torch.promote_types(hidden.dtype, weight.dtype), hidden.device.type
    if dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return dtype


def _rows(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """`[N, D]`, the tokens kept."""
    return hidden.reshape(-1, hidden.shape[-1]) if mask is None else hidden[mask]


def _head_of(weight: Tensor | Head, who: str, hidden: Tensor) -> Head:
    head = weight if isinstance(weight, Head) else Head(weight)
    weight = head.weight
    if weight.ndim != 2 or hidden.ndim < 1 or hidden.shape[-1] != weight.shape[-1]:
        raise RecipeError(f"{NAME}: {who} hidden {shape(hidden)} and weight {shape(weight)}; [*B, D] and [V, D]")
    if head.bias is not None and head.bias.shape != weight.shape[:1]:
        raise RecipeError(f"{NAME}: {who} bias {shape(head.bias)} and weight {shape(weight)}; [V] and [V, D]")
    refuse_unless(NAME, f"{who} scale", head.scale, 0 < head.scale < float("inf"), "a number above 0")
    if head.softcap is not None:
        refuse_unless(NAME, f"{who} softcap", head.softcap, 0 < head.softcap < float("inf"), "above 0, or None")
    return head


def _teacher(
    source: Tensor | TopK | TeacherLogits,
    weight: Tensor | Head | None,
    student_hidden: Tensor,
    own: Head,
    mask: Tensor | None,
) -> Online | TopK:
    items, classes = student_hidden.shape[:-1], len(own.weight)
    if not isinstance(source, Tensor):
        if weight is not None:
            raise RecipeError(f"{NAME}: a teacher that gives logits or a TopK has no weight of its own; leave it out")
        return _kept_top_k(source, items, classes, mask) if isinstance(source, TopK) else _told(source, classes)
    if weight is None:
        raise RecipeError(f"{NAME}: teacher hidden {shape(source)} without a weight; give teacher_weight [V, D]")
    head = _head_of(weight, "teacher", source)
    if source.shape[:-1] != items:
        raise RecipeError(
            f"{NAME}: student hidden {shape(student_hidden)} and teacher hidden {shape(source)}; "
            f"the leading axes must be equal"
        )
    if len(head.weight) != classes:
        raise RecipeError(
            f"{NAME}: student weight {shape(own.weight)} and teacher weight {shape(head.weight)}; "
            f"the vocabularies must be equal: slice both to the tokens they share"
        )
    return side_of(_rows(source, mask), head, _product_type(source, head.weight))


def _kept_top_k(targets: TopK, items: torch.Size, classes: int, mask: Tensor | None) -> TopK:
    if targets.classes != classes or targets.ids.shape[:-1] != items:
        raise RecipeError(
            f"{NAME}: targets {shape(targets.ids)} of {targets.classes} classes, student of {list(items)} items and "
            f"{classes} classes; both must be equal"
        )
    return without_tail(targets).each(lambda each: _rows(each.detach(), mask))


def _told(source: TeacherLogits, classes: int) -> TeacherLogits:
    def ask(part: slice) -> Tensor:
        with torch.no_grad():
            logits = source(part)
        if logits.shape != (part.stop - part.start, classes):
            raise RecipeError(
                f"{NAME}: the teacher gave logits {shape(logits)} for {part.stop - part.start} tokens and {classes} "
                "classes; allowed: [n, V]"
            )
        return logits

    return ask


def _hard(
    labels: Labels | None, student_hidden: Tensor, own: Head, mask: Tensor | None, hidden: Tensor
) -> tuple[Labels | None, Tensor | None]:
    """The labels of the tokens kept, 0 where there is none, and the factor of each token's cross-entropy."""
    if labels is None:
        return None, None
    refuse_unless(NAME, "labels.smoothing", labels.smoothing, 0 <= labels.smoothing <= 1, "0 to 1")
    refuse_unless(NAME, "labels.weight", labels.weight, 0 < labels.weight < float("inf"), "a number above 0")
    target = labels.target
    if target.shape != student_hidden.shape[:-1]:
        raise RecipeError(f"{NAME}: hidden {shape(student_hidden)} and labels.target {shape(target)}; it must be [*B]")
    target = target.reshape(-1) if mask is None else target[mask]
    there = target != labels.ignore_index
    logits = own.weight.new_empty(()).expand(len(target), len(own.weight))
    target = class_target(NAME, logits, target, there)
    factor = there.to(torch.promote_types(hidden.dtype, torch.float32))
    return replace(labels, target=target), factor * (labels.weight * len(target)) / factor.sum().clamp(min=1)


def _refuse_options(
    divergence: str, options: dict[str, Any], temperature: float, chunk: int | None, chunk_bytes: int | None
) -> None:
    refuse_temperature(NAME, temperature)
    if divergence not in DIVERGENCES:
        raise RecipeError(f"{NAME}: divergence is {divergence!r}; {did_you_mean(divergence, DIVERGENCES)}")
    if chunk is not None and chunk < 1:
        raise RecipeError(f"{NAME}: chunk is {chunk}; allowed: 1 or more tokens, or None")
    if chunk_bytes is not None and chunk_bytes < 1:
        raise RecipeError(f"{NAME}: chunk_bytes is {chunk_bytes}; allowed: 1 or more, or None")
    if chunk is not None and chunk_bytes is not None:
        raise RecipeError(
            f"{NAME}: chunk is {chunk} and chunk_bytes {chunk_bytes}, two sizes of one chunk; leave one out"
        )
    known = set(inspect.signature(DIVERGENCES[divergence]).parameters) - {"student", "teacher", "temperature"}
    for each in options:
        if each not in known:
            raise RecipeError(f"{NAME}: {each} is no option of {divergence}; {did_you_mean(each, known)}")
    nothing = torch.zeros(1, 1)
    DIVERGENCES[divergence](nothing, nothing, temperature=temperature, **options)


def _uses_triton(backend: str, divergence: str, own: Head, teacher: Online | TopK, hidden: Tensor) -> bool:
    if backend not in ("auto", "torch", "triton"):
        raise RecipeError(f"{NAME}: backend is {backend!r}; {did_you_mean(backend, ('auto', 'torch', 'triton'))}")
    if backend != "triton":
        return False
    reasons = {
        f"divergence is {divergence!r}, and the kernel is for 'forward_kl'": divergence != "forward_kl",
        "the teacher keeps only its largest probabilities": isinstance(teacher, TopK),
        "the student has a softcap": own.softcap is not None,
        "the logits are float64": torch.float64 in (hidden.dtype, own.weight.dtype),
        "the tensors are on the CPU": hidden.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1",
        "triton is not installed": importlib.util.find_spec("triton") is None,
    }
    for reason, holds in reasons.items():
        if holds:
            raise RecipeError(f"{NAME}: backend is 'triton', and {reason}; set backend to 'torch'")
    return True
