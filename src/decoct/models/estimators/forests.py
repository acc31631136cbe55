"""Forests: averages of trees grown apart."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import nn

from decoct.models.estimators.base import Estimator, Head, classes_of, is_classes
from decoct.models.estimators.trees import Tree, TreeEnsemble


class Forest(Estimator):
    """What the forests share: `n_estimators` trees, each split choosing among `max_features` columns (None: all).

    `max_depth`: splits from the root to a leaf at most (None: any number). `min_samples_leaf`: training samples in each
    leaf at least.
    """

    n_estimators: int = Field(default=200, ge=1, le=100_000)
    max_depth: int | None = Field(default=None, ge=1, le=1024)
    min_samples_leaf: int = Field(default=1, ge=1)
    max_features: Literal["sqrt", "log2"] | float | None = "sqrt"

    @abstractmethod
    def classes(self) -> tuple[type[Any], type[Any]]:
        """scikit-learn's classifier and regressor."""

    def fit(self, features: np.ndarray, target: np.ndarray, *, seed: int) -> Any:
        classifier, regressor = self.classes()
        options = {name: getattr(self, name) for name in Forest.model_fields} | {"random_state": seed}
        if is_classes(target):
            return classifier(**options).fit(features, target)
        return regressor(**options).fit(features, target[:, 0] if target.shape[1] == 1 else target)

    def module(self, fitted: Any, outputs: int) -> nn.Module:
        classes = classes_of(fitted)
        share = 1.0 / len(fitted.estimators_)
        trees = [_tree(each.tree_, share, classes is not None) for each in fitted.estimators_]
        head = Head("identity" if classes is None else "log", outputs, classes)
        return TreeEnsemble(trees, np.zeros(trees[0].value.shape[1]), head)


class RandomForest(Forest):
    """scikit-learn's RandomForestClassifier or RandomForestRegressor. Breiman 2001."""

    use: ClassVar[str] = "random_forest"

    def classes(self) -> tuple[type[Any], type[Any]]:
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

        return RandomForestClassifier, RandomForestRegressor


class ExtraTrees(Forest):
    """scikit-learn's ExtraTreesClassifier or ExtraTreesRegressor. Geurts et al. 2006."""

    use: ClassVar[str] = "extra_trees"

    def classes(self) -> tuple[type[Any], type[Any]]:
        from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

        return ExtraTreesClassifier, ExtraTreesRegressor


def _tree(tree: Any, share: float, classes: bool) -> Tree:
    value = tree.value[:, 0, :] if classes else tree.value[:, :, 0]
    if classes:
        value = value / value.sum(1, keepdims=True)
    return Tree(
        feature=np.asarray(tree.feature, np.int64),
        threshold=np.asarray(tree.threshold),
        left=np.asarray(tree.children_left, np.int64),
        right=np.asarray(tree.children_right, np.int64),
        missing_left=np.asarray(tree.missing_go_to_left, bool),
        value=share * value,
    )
