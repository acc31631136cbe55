"""Columns of a table as a model takes them: imputed, standardised, one-hot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from decoct.data.base import Dataset, Split
from decoct.data.mapped import spans
from decoct.data.statistics import Numbers, numbers_of
from decoct.errors import RecipeError
from decoct.spec import Spec

Encoding = Literal["one_hot", "ordinal"]


class Column(Spec):
    """One column of a table: the statistics of a number, or the values of a category by name.

    Missing numbers become `median`; then (x − mean) / std, both taken from the training split after imputation.
    """

    name: str
    median: float = 0.0
    mean: float = 0.0
    std: float = 1.0
    categories: Mapping[str, float] | None = None

    @property
    def width(self) -> int:
        """How many numbers the model gets for it."""
        return 1 if self.categories is None else len(self.categories)


def table_columns(data: Dataset, encoding: Encoding) -> tuple[Column, ...]:
    """The columns of a data set, with statistics of its training split; ordinal categories count as numbers."""
    features = table_of(data.splits["train"])
    named: Mapping[str, Mapping[str, float]] = data.info.get("categories", {}) if encoding == "one_hot" else {}
    names = data.features or tuple(map(str, range(features.shape[1])))
    numeric = [i for i, name in enumerate(names) if name not in named]
    found = dict(zip(numeric, numbers_of(features, numeric)))
    return tuple(
        _number(name, found[i]) if i in found else _category(name, features[:, i], named[name])
        for i, name in enumerate(names)
    )


def table_of(split: Split) -> np.ndarray:
    """The features of a split; RecipeError where it has none."""
    if "features" not in split.columns:
        raise RecipeError(f"the task takes tables; the data have {', '.join(split.columns)}")
    features: np.ndarray = split.columns["features"]
    return features


class TabularPreprocessing(nn.Module):
    """float32 `[B, F]` (NaN = missing) -> float32 `[B, Σ width]`: numbers first, then the categories one-hot.

    A category that the training split did not have, or a missing one, gives zeros.
    """

    numbers: Tensor
    median: Tensor
    mean: Tensor
    std: Tensor
    sources: Tensor
    values: Tensor

    def __init__(self, columns: tuple[Column, ...]) -> None:
        super().__init__()
        numbers = [(i, column) for i, column in enumerate(columns) if column.categories is None]
        codes = [(i, value) for i, column in enumerate(columns) for value in (column.categories or {}).values()]
        self.has_numbers, self.has_categories = bool(numbers), bool(codes)
        self.register_buffer("numbers", torch.tensor([i for i, _ in numbers], dtype=torch.int64))
        for name in ("median", "mean", "std"):
            self.register_buffer(name, torch.tensor([getattr(column, name) for _, column in numbers]))
        self.register_buffer("sources", torch.tensor([i for i, _ in codes], dtype=torch.int64))
        self.register_buffer("values", torch.tensor([value for _, value in codes]))

    def forward(self, features: Tensor) -> Tensor:
        parts = []
        if self.has_numbers:
            numbers = features.index_select(1, self.numbers)
            numbers = torch.where(torch.isnan(numbers), self.median, numbers)
            parts.append((numbers - self.mean) / self.std)
        if self.has_categories:
            parts.append((features.index_select(1, self.sources) == self.values).to(features.dtype))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def table_tensor(split: Split, indices: np.ndarray) -> Tensor:
    """float32 `[B, F]` of the samples, NaN kept."""
    return torch.from_numpy(np.ascontiguousarray(table_of(split)[indices], np.float32))


def table_example(columns: tuple[Column, ...], batch: int) -> Tensor:
    """Made-up rows: numbers around their means, categories by turns, one missing number."""
    generator = np.random.default_rng(0)
    rows = np.empty((batch, len(columns)), np.float32)
    for i, column in enumerate(columns):
        if column.categories is None:
            rows[:, i] = column.mean + column.std * generator.standard_normal(batch)
        else:
            values = list(column.categories.values()) or [0.0]
            rows[:, i] = np.resize(values, batch)
    numeric = [i for i, column in enumerate(columns) if column.categories is None]
    if numeric:
        rows[-1, numeric[0]] = np.nan
    return torch.from_numpy(rows)


def _number(name: str, found: Numbers) -> Column:
    return Column(name=name, median=found.median, mean=found.mean, std=found.std if found.std > 0 else 1.0)


def _category(name: str, values: np.ndarray, named: Mapping[str, float]) -> Column:
    seen = {value for part in spans(len(values)) for value in np.unique(values[part]).tolist()}
    kept = {text: value for text, value in named.items() if value in seen}
    return Column(name=name, categories=kept)
