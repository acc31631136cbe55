"""Variational information distillation: the teacher's features predicted with a variance."""

from __future__ import annotations

from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives._numeric import full_precision, item_mean, promote, refuse_unlike, shape


@full_precision
def vid_loss(mean: Tensor, variance: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all elements of ½((t − mean)²/variance + log variance).

    `mean` and `teacher` of one shape; `variance` above 0, broadcast to it. Gradients flow to mean and variance. Not 0
    at mean == teacher. The authors' code takes the same mean, the variance being softplus(a) + 1e-5 per channel.

    Ahn et al. 2019, arXiv 1904.05835, equation 5.

    >>> import torch
    >>> vid_loss(torch.zeros(1, 2), torch.ones(2), torch.ones(1, 2)).item()
    0.5
    """
    refuse_unlike("vid_loss", mean, teacher, "the predicted mean has the teacher's shape")
    mean, variance, teacher = promote(mean, variance, teacher)
    if not _broadcasts(variance, mean):
        raise RecipeError(f"vid_loss: mean {shape(mean)} and variance {shape(variance)}; variance must broadcast to it")
    gap = (teacher.detach() - mean).square()
    return item_mean(0.5 * (gap / variance + variance.log()))


def _broadcasts(small: Tensor, large: Tensor) -> bool:
    sizes = zip(reversed(small.shape), reversed(large.shape))
    return small.ndim <= large.ndim and all(a in (1, b) for a, b in sizes)
