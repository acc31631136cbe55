"""Localisation distillation: box edges as distributions over bins."""

from __future__ import annotations

from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives._numeric import full_precision, item_mean, kl_rows, log_softmax, logit_pair, shape


@full_precision
def localization_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 10.0,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """T² · Σ_bins p (log p − log q) for each edge, times its weight, summed and divided by N.

    Edge-bin logits `[N, n+1]`, `weight` `[N]`, `mask` `[N]` bool (N is then the number kept). 0 at student ==
    teacher. Convention: `KnowledgeDistillationKLDivLoss` of mmdet takes a mean over bins, this divided by n+1.

    Zheng et al. 2022, arXiv 2102.12252, equation 4.

    >>> import torch
    >>> x = torch.randn(4, 9)
    >>> localization_loss(x, x, weight=torch.ones(4)).item()
    0.0
    """
    student, teacher = logit_pair("localization_loss", student, teacher, mask, temperature)
    rows = kl_rows(log_softmax(teacher, temperature), log_softmax(student, temperature))
    if weight is not None:
        if weight.shape != rows.shape:
            raise RecipeError(f"localization_loss: student {shape(student)} and weight {shape(weight)}; must be [N]")
        weight = weight.detach().to(rows.dtype)
        rows = rows * (weight if mask is None else weight.masked_fill(~mask, 0.0))
    return temperature**2 * item_mean(rows, mask)
