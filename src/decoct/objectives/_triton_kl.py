"""Forward KL and hard cross-entropy of a block of logits in one Triton kernel, their gradient in place of the logits.

A program works on one row: one pass for the maxima and sums of both softmaxes, one for the values and the gradient.
Imported where backend="triton" is asked for. Tested under TRITON_INTERPRET=1; not measured on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDEST = 8192
"""Classes of a row worked on at once."""


@triton.jit
def _rows(  # type: ignore[no-untyped-def]
    student,
    teacher,
    target,
    factor,
    soft,
    hard,
    own_stride,
    teacher_stride,
    classes,
    temperature,
    smoothing,
    LABELS: tl.constexpr,
    GRADIENT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    own, theirs = student + row * own_stride, teacher + row * teacher_stride
    lanes = tl.arange(0, WIDTH)
    least = float("-inf")
    top_s, top_t = least, least
    sum_s, sum_t, sum_1 = 0.0, 0.0, 0.0
    alive, total = 0.0, 0.0
    for start in range(0, classes, WIDTH):
        inside = start + lanes < classes
        s = tl.load(own + start + lanes, mask=inside, other=least)
        t = tl.load(theirs + start + lanes, mask=inside, other=least)
        new_s, new_t = tl.maximum(top_s, tl.max(s, 0)), tl.maximum(top_t, tl.max(t, 0))
        safe_s, safe_t = tl.where(new_s == least, 0.0, new_s), tl.where(new_t == least, 0.0, new_t)
        sum_s = sum_s * tl.exp((top_s - safe_s) / temperature) + tl.sum(tl.exp((s - safe_s) / temperature), 0)
        sum_1 = sum_1 * tl.exp(top_s - safe_s) + tl.sum(tl.exp(s - safe_s), 0)
        sum_t = sum_t * tl.exp((top_t - safe_t) / temperature) + tl.sum(tl.exp((t - safe_t) / temperature), 0)
        alive += tl.sum(tl.where(s == least, 0.0, 1.0), 0)
        top_s, top_t = new_s, new_t
    log_s, log_t, log_1 = tl.log(sum_s), tl.log(sum_t), tl.log(sum_1)
    weight = 0.0
    label = -1
    if LABELS:
        weight = tl.load(factor + row)
        label = tl.load(target + row)
    value, likely = 0.0, 0.0
    for start in range(0, classes, WIDTH):
        inside = start + lanes < classes
        s = tl.load(own + start + lanes, mask=inside, other=least)
        t = tl.load(theirs + start + lanes, mask=inside, other=least)
        log_q = (s - top_s) / temperature - log_s
        log_p = (t - top_t) / temperature - log_t
        p = tl.exp(log_p)
        value += tl.sum(tl.where(p == 0.0, 0.0, p * (log_p - log_q)), 0)
        gradient = (tl.exp(log_q) - p) / temperature
        if LABELS:
            log_1q = s - top_s - log_1
            chosen = start + lanes == label
            living = s != least
            total += tl.sum(tl.where(living, log_1q, 0.0), 0)
            likely += tl.sum(tl.where(chosen, log_1q, 0.0), 0)
            wanted = tl.where(chosen, 1.0 - smoothing, 0.0) + tl.where(living, smoothing / alive, 0.0)
            gradient += weight * (tl.exp(log_1q) - wanted)
        if GRADIENT:
            tl.store(own + start + lanes, gradient, mask=inside)
    tl.store(soft + row, value)
    if LABELS:
        log_likelihood = (1.0 - smoothing) * likely
        if smoothing > 0.0:
            log_likelihood += smoothing / alive * total
        tl.store(hard + row, -weight * log_likelihood)


def forward_kl_in_place(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    gradient: bool,
    labels: tuple[Tensor, Tensor, float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums over the rows `[R, V]` of KL(p‖q) and of factor · cross-entropy; `student` becomes the gradient of both.

    Both float32 with a last stride of 1. `labels`: class ids `[R]`, factors `[R]` (0 where there is no label), and the
    smoothing.
    """
    assert student.dtype == teacher.dtype == torch.float32
    assert student.stride(-1) == teacher.stride(-1) == 1
    count, classes = student.shape
    soft, hard = student.new_zeros(count), student.new_zeros(count)
    target, factor, smoothing = labels if labels is not None else (soft, soft, 0.0)
    width = min(triton.next_power_of_2(classes), WIDEST)
    _rows[(count,)](
        student,
        teacher,
        target,
        factor,
        soft,
        hard,
        student.stride(0),
        teacher.stride(0),
        classes,
        temperature,
        smoothing,
        LABELS=labels is not None,
        GRADIENT=gradient,
        WIDTH=width,
        num_warps=8 if width <= 2048 else 16,
    )
    return soft.sum(), hard.sum()
