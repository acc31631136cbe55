"""Tables: preprocessing against scikit-learn."""

import numpy as np
import pytest
import torch

from decoct.data.base import Dataset
from decoct.tasks.tabular_classification import TabularClassification


@pytest.mark.parametrize("encoding", ["one_hot", "ordinal"])
def test_tabular_preprocessing_against_scikit_learn(table: Dataset, encoding: str) -> None:
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    task = TabularClassification(encoding=encoding).resolve(table)
    train, test = (table.splits[name].columns["features"].copy() for name in ("train", "test"))
    test[0, 1] = 9.0  # a category that training never saw
    numeric = [0, 2] if encoding == "one_hot" else [0, 1, 2]
    scaled = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    steps = [("numbers", scaled, numeric)]
    if encoding == "one_hot":
        steps.append(("kinds", OneHotEncoder(categories=[[1.0, 2.0, 5.0]], handle_unknown="ignore"), [1]))
    oracle = ColumnTransformer(steps, sparse_threshold=0).fit(train)
    found = task.reading("student").preprocessing()(torch.from_numpy(test.astype(np.float32)))
    np.testing.assert_allclose(found.numpy(), oracle.transform(test), atol=1e-5)
    assert task.reading("student").interface.shape == (found.shape[1],)
