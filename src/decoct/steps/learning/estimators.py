"""What an estimator learns from: the rows of a table as the task prepares them, and what it says of such rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from decoct.data.views import seen_of
from decoct.errors import DataError, RecipeError
from decoct.outputs import Batch
from decoct.steps.base import Context


def labelled_rows(batches: Iterator[Batch], context: Context, side: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features float32 `[N, F]`, target, and uint64 `[N]` what each looks like, of the labelled samples."""
    preprocessing = context.task.reading(side).preprocessing().eval()
    features, targets, keys = [], [], []
    for batch in batches:
        target = batch.target.numpy()
        known = np.isfinite(target).all(1) if target.dtype.kind == "f" else target >= 0
        if batch.labelled is not None:
            known &= batch.labelled.numpy()
        features.append(features_of(preprocessing, batch, side)[known])
        targets.append(target[known])
        keys.append(seen_of(batch)[known])
    x, y = np.concatenate(features), np.concatenate(targets)
    if len(x) == 0:
        raise DataError("train_estimator: no training sample has a label")
    return x, y, np.concatenate(keys)


def features_of(preprocessing: nn.Module, batch: Batch, side: str) -> np.ndarray:
    """float32 `[B, F]`: what an estimator takes of a batch."""
    raw = batch.side(side)
    if not isinstance(raw, torch.Tensor):
        raise RecipeError("train_estimator learns from numbers; this task gives text. Use `use: train` with a network")
    with torch.no_grad():
        prepared: np.ndarray = preprocessing(raw).flatten(1).numpy()
    return prepared


def predicted(fitted: Any, features: np.ndarray, width: int, *, distribution: bool) -> np.ndarray:
    """What scikit-learn says of rows, float64 `[N, width]`: probabilities, 0 of classes that it lacks, or numbers."""
    if not distribution:
        numbers: np.ndarray = np.asarray(fitted.predict(features), np.float64).reshape(len(features), width)
        return numbers
    found = np.zeros((len(features), width))
    found[:, fitted.classes_] = fitted.predict_proba(features)
    return found
