"""Linear models."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.models.estimators.base import Estimator, Head, is_classes


class LogisticRegression(Estimator):
    """scikit-learn's LogisticRegression: multinomial, with an L2 penalty of strength 1 / `C`.

    `max_iter`: iterations of its solver at most.
    """

    use: ClassVar[str] = "logistic_regression"
    predicts_numbers: ClassVar[bool] = False
    C: float = Field(default=1.0, gt=0)
    max_iter: int = Field(default=1000, ge=1, le=10_000_000)

    def fit(self, features: np.ndarray, target: np.ndarray, *, seed: int) -> Any:
        from sklearn import linear_model

        if not is_classes(target):
            raise RecipeError("estimator.use: logistic_regression learns classes, the task has numbers; use linear")
        return linear_model.LogisticRegression(C=self.C, max_iter=self.max_iter, random_state=seed).fit(
            features, target
        )

    def module(self, fitted: Any, outputs: int) -> nn.Module:
        return LinearModel(fitted.coef_, fitted.intercept_, Head("softmax", outputs, fitted.classes_))


class Ridge(Estimator):
    """scikit-learn's Ridge: least squares with an L2 penalty of strength `alpha`."""

    use: ClassVar[str] = "linear"
    predicts_classes: ClassVar[bool] = False
    alpha: float = Field(default=1.0, ge=0)

    def fit(self, features: np.ndarray, target: np.ndarray, *, seed: int) -> Any:
        from sklearn import linear_model

        if is_classes(target):
            raise RecipeError("estimator.use: linear predicts numbers, the task has classes; use logistic_regression")
        return linear_model.Ridge(alpha=self.alpha, random_state=seed).fit(features, target)

    def module(self, fitted: Any, outputs: int) -> nn.Module:
        return LinearModel(np.atleast_2d(fitted.coef_), np.atleast_1d(fitted.intercept_), Head("identity", outputs))


class LinearModel(nn.Module):
    """float32 `[B, F]` -> `head(W x + b)`."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: np.ndarray, bias: np.ndarray, head: Head) -> None:
        super().__init__()
        self.register_buffer("weight", torch.from_numpy(weight.astype(np.float32)))
        self.register_buffer("bias", torch.from_numpy(np.ravel(bias).astype(np.float32)))
        self.parameters_learned = weight.size + bias.size
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(nn.functional.linear(x.flatten(1), self.weight, self.bias))
        return logits
