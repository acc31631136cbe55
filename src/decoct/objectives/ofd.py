"""Overhaul of feature distillation: a partial distance beyond the teacher's margin."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives._maps import equal_pair
from decoct.objectives._numeric import full_precision, promote, refuse_unlike, shape


@full_precision
def ofd_loss(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """Sum over C, H, W, mean over B of a partial squared distance.

    Pre-ReLU features of one shape `[B, C, H, W]` (tokens `[B, N, C]`), margin `[C]`, at most 0. (s−m)² where s > m
    and t ≤ m; (s−t)² where s > t and m < t ≤ 0; (s−t)² where t > 0; else 0. 0 at student == teacher where t > m, and
    elsewhere wherever s ≤ m. The authors' code takes the same sum, weighs deep to shallow layers by halves, divides by
    the batch and by 1000.

    Heo et al. 2019, arXiv 1904.01866, equation 3.

    >>> s, t = torch.tensor([[[[2.0, 1.0, -3.0]]]]), torch.tensor([[[[1.0, -0.5, -4.0]]]])
    >>> ofd_loss(s, t, torch.tensor([-1.0])).item()
    3.25
    """
    student, teacher = equal_pair("ofd_loss", student, teacher)
    channels = student.shape[1] if student.ndim == 4 else student.shape[-1]
    if margin.shape != (channels,):
        raise RecipeError(f"ofd_loss: student {shape(student)} and margin {shape(margin)}; margin must be [{channels}]")
    m = margin.detach().to(student.dtype)
    m = m.reshape(1, -1, 1, 1) if student.ndim == 4 else m
    target = torch.where(teacher > m, teacher, m)
    counts = (teacher > 0) | (student > target)
    return torch.where(counts, (student - target).square(), 0.0).sum() / max(len(student), 1)


@full_precision
def ofd_margin(weight: Tensor, bias: Tensor) -> Tensor:
    """Margin `[C]`: the expected value of a channel given that it is negative, from its batch norm.

    `weight` g and `bias` b `[C]` of the teacher's batch norm before the ReLU; s = |g|. Where Φ(−b/s) > 0.001:
    −s·exp(−(b/s)²/2)/√(2π)/Φ(−b/s) + b, else −3s. No gradient.

    Heo et al. 2019, arXiv 1904.01866, appendix A.

    >>> ofd_margin(torch.tensor([1.0]), torch.tensor([0.0]))
    tensor([-0.7979])
    """
    refuse_unlike("ofd_margin", weight, bias)
    g, b = promote(weight.detach(), bias.detach())
    s = g.abs()
    below = torch.special.ndtr(-b / s)
    expected = -s * torch.exp(-(b / s).square() / 2) / math.sqrt(2 * math.pi) / below + b
    return torch.where(below > 0.001, expected, -3 * s)
