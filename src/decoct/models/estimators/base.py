"""Estimator, the Spec of a scikit-learn model, and Head, what turns its raw scores into logits."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.spec import Spec

TINY = 1e-12
"""Probability that stands for 0 in a file, where logits are logarithms."""
Link = Literal["identity", "log", "softmax"]


class Estimator(Spec):
    """Describes a scikit-learn model of a table; `predicts_classes`, `predicts_numbers`: what it can learn."""

    predicts_classes: ClassVar[bool] = True
    predicts_numbers: ClassVar[bool] = True

    @abstractmethod
    def fit(self, features: np.ndarray, target: np.ndarray, *, seed: int) -> Any:
        """The fitted scikit-learn model.

        `features` float32 `[N, F]`; `target` int64 `[N]` for classes, float `[N, D]` for numbers. RecipeError where
        this kind cannot learn such a target.
        """

    @abstractmethod
    def module(self, fitted: Any, outputs: int) -> nn.Module:
        """The fitted model as a module: float32 `[B, F]` -> log-probabilities `[B, outputs]`, or numbers."""


def is_classes(target: np.ndarray) -> bool:
    """Whether a target holds class ids."""
    return bool(np.issubdtype(target.dtype, np.integer))


def classes_of(fitted: Any) -> np.ndarray | None:
    """The class ids that a fitted model knows, in the order of its columns; None where it predicts numbers."""
    from sklearn.base import is_classifier

    return np.asarray(fitted.classes_) if is_classifier(fitted) else None


def one_column(target: np.ndarray, use: str) -> np.ndarray:
    """`[N, 1]` -> `[N]`; RecipeError for more numbers."""
    if target.shape[1] != 1:
        raise RecipeError(f"{use} predicts one number, the task has {target.shape[1]}; use random_forest or linear")
    return target[:, 0]


class Head(nn.Module):
    """Raw scores -> logits of the task.

    `identity` for numbers; `log` of probabilities; `softmax`: log softmax of scores, one column meaning two classes
    with scores 0 and r. `present`: the task's class of each column; the classes that training lacked get log TINY.
    """

    order: Tensor | None

    def __init__(self, link: Link, outputs: int, present: np.ndarray | None = None) -> None:
        super().__init__()
        self.link = link
        order = None
        if present is not None and (len(present) != outputs or (present != np.arange(outputs)).any()):
            places = np.full(outputs, len(present))
            places[present] = np.arange(len(present))
            order = torch.from_numpy(places)
        self.register_buffer("order", order)

    def forward(self, raw: Tensor) -> Tensor:
        if self.link == "identity":
            return raw
        if self.link == "log":
            found = raw.clamp(min=TINY).log()
        elif raw.shape[1] == 1:
            found = torch.cat([F.logsigmoid(-raw), F.logsigmoid(raw)], 1)
        else:
            found = F.log_softmax(raw, 1)
        found = found.clamp(min=math.log(TINY))
        if self.order is None:
            return found
        missing = torch.full_like(found[:, :1], math.log(TINY))
        return torch.cat([found, missing], 1).index_select(1, self.order)
