"""Statistics of the whole batch, over all processes: those of batch normalisation, and ranges of values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from decoct.training.processes import Processes

_WHOLE: ContextVar[Processes | None] = ContextVar("decoct_whole_batch", default=None)


class TakesRange:
    """A module that takes the range of values from each batch, by `whole_range`."""


def whole_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest number in `x`, over all processes' parts while `synchronised` is active; float32.

    A Padding, which is a sample of the same batch, changes neither.
    """
    found = torch.stack([-x.detach().min().float(), x.detach().max().float()])
    processes = _WHOLE.get()
    if processes is not None:
        found = processes.every(found).amax(0)
    return -found[0], found[1]


def has_batch_statistics(modules: Iterable[nn.Module]) -> bool:
    """Whether among the modules is batch normalisation, of any library's class, or one that takes a batch's range."""
    return any(
        isinstance(each, _BatchNorm | TakesRange)
        or any(name == "running_mean" for name, _ in each.named_buffers(recurse=False))
        for module in modules
        for each in module.modules()
    )


class Synchronised(TorchFunctionMode):
    """While it is active, `torch.nn.functional.batch_norm` in training takes its statistics from all processes.

    Mean and variance of each channel are those of all samples of the batch together, and gradients flow through them;
    equal to one process with the whole batch. All processes must run the same layers. `counts` False: this process's
    samples are normalised, but have no part in the statistics.

    Ioffe and Szegedy 2015, arXiv 1502.03167, algorithm 1 over the union of the processes' samples.
    """

    def __init__(self, processes: Processes, *, counts: bool = True) -> None:
        super().__init__()
        self.processes, self.counts = processes, counts

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not nn.functional.batch_norm:
            return func(*args, **(kwargs or {}))
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        given: dict[str, Any] = {"weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5}
        given |= dict(zip(names, args)) | dict(kwargs or {})
        if not given["training"]:
            return func(*args, **(kwargs or {}))
        return _normalised(**given, processes=self.processes, counts=self.counts)


@contextmanager
def synchronised(processes: Processes, active: bool, *, counts: bool = True) -> Iterator[None]:
    """`Synchronised`, and ranges of the whole batch, where it is `active` and there are several processes."""
    if not (active and processes.several):
        yield
        return
    token = _WHOLE.set(processes)
    try:
        with Synchronised(processes, counts=counts):
            yield
    finally:
        _WHOLE.reset(token)


def _normalised(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    training: bool,
    momentum: float,
    eps: float,
    processes: Processes,
    counts: bool,
) -> Tensor:
    wide = input.double() if input.dtype == torch.float64 else input.float()
    normal, mean, variance, count = _WholeBatch.apply(wide, eps, processes, counts)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            unbiased = variance * (count / (count - 1).clamp(min=1))
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    shape = [1, -1] + [1] * (input.ndim - 2)
    if weight is not None:
        normal = normal * weight.view(shape)
    if bias is not None:
        normal = normal + bias.view(shape)
    return normal.to(input.dtype)


class _WholeBatch(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps), mean and variance over all processes' samples; and these two and their count."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, eps: float, processes: Processes, counts: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        own = x.new_tensor([x.numel() / x.shape[1] if counts else 0.0], dtype=torch.float64)
        variance, mean = torch.var_mean(x, axes, correction=0)
        found = processes.every(torch.cat([own, mean.double(), variance.double()]))
        sizes, means, variances = found[:, :1], found[:, 1 : 1 + len(mean)], found[:, 1 + len(mean) :]
        count = sizes.sum()
        middle = (sizes * means).sum(0) / count
        mean = middle.to(x.dtype)
        variance = ((sizes * (variances + (means - middle).square())).sum(0) / count).to(x.dtype)
        centred = x - mean.view(shape)
        inverse = (variance + eps).rsqrt()
        normal = centred * inverse.view(shape)
        ctx.save_for_backward(normal, inverse, count)
        ctx.processes, ctx.part, ctx.axes, ctx.shape = processes, float(counts), axes, shape
        ctx.mark_non_differentiable(mean, variance, count)
        return normal, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, None, None, None]:
        normal, inverse, count = ctx.saved_tensors
        sums = torch.stack([gradient.sum(ctx.axes, dtype=torch.float64)])
        sums = torch.cat([sums, (gradient * normal).sum(ctx.axes, dtype=torch.float64)[None]])
        ctx.processes.sum(sums)
        by_mean, by_variance = ((each / count).to(gradient.dtype).view(ctx.shape) for each in sums)
        through = ctx.part * (by_mean + normal * by_variance)
        return (gradient - through) * inverse.view(ctx.shape), None, None, None
