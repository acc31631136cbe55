"""Gradient boosting over histograms."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from torch import nn

from decoct.models.estimators.base import Estimator, Head, classes_of, is_classes, one_column
from decoct.models.estimators.growing import GROWING
from decoct.models.estimators.trees import Tree, TreeEnsemble


class GradientBoosting(Estimator):
    """scikit-learn's HistGradientBoostingClassifier or HistGradientBoostingRegressor.

    `max_iter` trees (for each class, where there are more than two); with `early_stopping` growth ends when a tenth of
    the training samples, held out, has not gained for 10 trees; not where a class has one sample alone.
    `learning_rate`: the factor on what each tree adds. `max_leaf_nodes`: leaves of a tree at most. `max_depth`: splits
    from the root to a leaf at most (None: any number). `min_samples_leaf`: training samples in each leaf at least.
    `l2_regularization`: the L2 penalty on the values of leaves. Ke et al. 2017 (LightGBM).
    """

    use: ClassVar[str] = "gradient_boosting"
    max_iter: int = Field(default=300, ge=1, le=100_000)
    learning_rate: float = Field(default=0.1, gt=0)
    max_leaf_nodes: int = Field(default=31, ge=2, le=65_536)
    max_depth: int | None = Field(default=None, ge=1, le=1024)
    min_samples_leaf: int = Field(default=20, ge=1)
    l2_regularization: float = Field(default=0.0, ge=0)
    early_stopping: bool = True

    def fit(self, features: np.ndarray, target: np.ndarray, *, seed: int) -> Any:
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        options = {name: getattr(self, name) for name in type(self).model_fields} | {"random_state": seed}
        if self.early_stopping and is_classes(target) and np.unique(target, return_counts=True)[1].min() < 2:
            warnings.warn(
                "gradient_boosting: a class has one sample alone, so none is held out to stop by", stacklevel=2
            )
            options["early_stopping"] = False
        kind = HistGradientBoostingClassifier if is_classes(target) else HistGradientBoostingRegressor
        wanted, model = target if is_classes(target) else one_column(target, self.use), kind(**options)
        with GROWING.counted(lambda: len(getattr(model, "_predictors", ())), self.max_iter, "rounds"):
            return model.fit(features, wanted)

    def module(self, fitted: Any, outputs: int) -> nn.Module:
        classes = classes_of(fitted)
        width = fitted.n_trees_per_iteration_
        trees = [
            _tree(each.nodes, column, width)
            for iteration in fitted._predictors
            for column, each in enumerate(iteration)
        ]
        head = Head("identity" if classes is None else "softmax", outputs, classes)
        return TreeEnsemble(trees, np.ravel(fitted._baseline_prediction), head)


def _tree(nodes: np.ndarray, column: int, width: int) -> Tree:
    leaf = nodes["is_leaf"].astype(bool)
    value = np.zeros((len(nodes), width))
    value[:, column] = nodes["value"]
    return Tree(
        feature=nodes["feature_idx"].astype(np.int64),
        threshold=nodes["num_threshold"],
        left=np.where(leaf, -1, nodes["left"].astype(np.int64)),
        right=np.where(leaf, -1, nodes["right"].astype(np.int64)),
        missing_left=nodes["missing_go_to_left"].astype(bool),
        value=value,
    )
