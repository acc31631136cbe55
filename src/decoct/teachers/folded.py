"""Folds: which rows go together, and what is said of each by a model that was not fitted on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from decoct.data.hashing import keyed
from decoct.data.views import seen_of
from decoct.outputs import Batch, Dense, Outputs, Predictor, device_of


def assigned(keys: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """int64 `[N]`: the fold of each of N rows with unequal keys, evenly over `groups` (classes), by the key's hash.

    Their order does not matter; two folds differ by one row at most, and by one row of a group.

    >>> folds = assigned(np.arange(6, dtype=np.uint64), np.array([0, 0, 1, 1, 1, 1]), 2)
    >>> np.bincount(folds).tolist(), np.bincount(folds[2:]).tolist()
    ([3, 3], [2, 2])
    """
    order = np.lexsort((keyed("fold", keys), groups))
    found = np.empty(len(keys), np.int64)
    found[order] = np.arange(len(keys)) % count
    return found


def out_of_fold(whole: Predictor, keys: np.ndarray, logits: torch.Tensor) -> Predictor:
    """A predictor that knows the answers about some rows, and asks `whole` of all others.

    `keys` uint64 `[N]`, sorted: what the rows look like as they are (another view of one is another row); `logits`
    `[N, C]`.
    """

    def predict(batch: Batch) -> Outputs:
        asked = seen_of(batch)
        places = np.searchsorted(keys, asked).clip(max=len(keys) - 1)
        known = keys[places] == asked
        if not known.any():
            return whole(batch)
        found = logits[torch.from_numpy(places)].to(device_of(batch.inputs))
        if known.all():
            return Outputs(Dense(found))
        outputs = whole(batch)
        assert outputs.logits is not None
        kept = torch.from_numpy(known).to(found.device).unsqueeze(-1)
        return replace(outputs, distribution=Dense(torch.where(kept, found, outputs.logits)))

    return predict
