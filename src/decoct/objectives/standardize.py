"""Logit standardisation: each row of logits to mean 0 and spread 1."""

from __future__ import annotations

import torch

from decoct.objectives._numeric import full_precision, promote
from decoct.objectives._shapes import Logits


@full_precision
def standardize_logits(logits: Logits) -> Logits:
    """(x − mean) / (1e-7 + std) over the last axis, the std with Bessel's correction.

    Not a loss: goes before one, on both sides. Logits `[*B, C]` in, the same shape out, in float32 at least.
    Differentiable; a constant row gives 0, with a gradient of 0 through its std. A class at −inf stays there and
    counts in neither mean nor std. The authors' code also multiplies the loss by a weight of 9 on CIFAR-100.

    Sun et al. 2024, "Logit Standardization in Knowledge Distillation", arXiv 2403.01427, algorithm 1.

    >>> standardize_logits(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
    tensor([[-1.0000,  0.0000,  1.0000],
            [ 0.0000,  0.0000,  0.0000]])
    """
    (x,) = promote(logits)
    dead = x == -torch.inf
    count = (~dead).sum(-1, keepdim=True)
    # Both mean and std ignore a common shift: taking off the maximum makes a constant row exactly 0.
    shift = x.detach().amax(-1, keepdim=True)
    x = torch.where(dead, 0.0, x - torch.where(shift == -torch.inf, 0.0, shift))
    centred = torch.where(dead, 0.0, x - x.sum(-1, keepdim=True) / count.clamp(min=1))
    variance = centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    flat = variance == 0
    std = torch.where(flat, 0.0, torch.where(flat, 1.0, variance).sqrt())
    return torch.where(dead, -torch.inf, centred / (1e-7 + std))
