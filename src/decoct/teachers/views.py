"""A teacher's answer averaged over augmented views of each sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from decoct.errors import RecipeError
from decoct.outputs import Batch, Dense, Outputs, Predictor


def mean_of_views(logits: Sequence[Tensor], *, numbers: bool = False) -> Tensor:
    """log of the mean of softmax(logits) over K tensors `[*B, C]`; their plain mean where they are `numbers`.

    As in tests with several views (Krizhevsky et al. 2012, section 4.1): probabilities are averaged, at temperature 1.

    >>> mean_of_views([torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]])]).exp().tolist()
    [[0.5, 0.5]]
    """
    stacked = torch.stack([each if each.dtype == torch.float64 else each.float() for each in logits])
    if numbers:
        return stacked.mean(0)
    return torch.logsumexp(stacked.log_softmax(-1), 0) - math.log(len(logits))


def over_views(predict: Predictor, *, numbers: bool = False) -> Predictor:
    """Predicts a batch and its `views`, and answers with the mean; all but the logits come from the batch itself."""

    def averaged(batch: Batch) -> Outputs:
        outputs = predict(batch)
        if not batch.views:
            return outputs
        found = [outputs.logits, *(predict(each).logits for each in batch.views)]
        logits = [each for each in found if each is not None]
        if len(logits) < len(found):
            raise RecipeError("teacher_views: the teacher gives no logits to average")
        return replace(outputs, distribution=Dense(mean_of_views(logits, numbers=numbers)))

    return averaged
