"""Classification of rows of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from decoct.data.base import Dataset, Split
from decoct.errors import RecipeError
from decoct.models.base import Interface
from decoct.outputs import Batch
from decoct.tasks.base import Side
from decoct.tasks.calls import Kind, TabularProgram
from decoct.tasks.classification import Classification, class_target
from decoct.tasks.supervised import SIDES, batch_of, feed_arrays, shape_of
from decoct.tasks.tabular import (
    Column,
    Encoding,
    TabularPreprocessing,
    table_columns,
    table_example,
    table_tensor,
)


class TabularClassification(Classification):
    """One class for each row of a table; imputation, standardisation and one-hot coding are inside the exported graph.

    `encoding` of categorical columns: `one_hot`, or `ordinal` (their numbers, standardised). `columns` hold the
    statistics of the training split. `shape` of a row is needed with `raw` alone. The main metric is the area under
    the ROC curve for two classes, accuracy for more, unless `metric_name` says otherwise.
    """

    use: ClassVar[str] = "tabular_classification"
    encoding: Encoding = "one_hot"
    columns: tuple[Column, ...] = ()
    shape: tuple[int, ...] | None = None

    @property
    def kind(self) -> Kind:
        return "tabular"

    def resolve(self, data: Dataset) -> Self:
        if self.raw or (self.classes and self.columns and self.metric_name):
            return self
        classes = self.classes or data.classes
        if not classes:
            raise RecipeError("tabular_classification: the data have no classes; is it `task: {use: regression}`?")
        metric = self.metric_name or ("auc" if len(classes) == 2 else "accuracy")
        columns = self.columns or table_columns(data, self.encoding)
        return self.replace(classes=classes, columns=columns, metric_name=metric)

    def interface(self, side: Side) -> Interface:
        shape = self._raw_shape() if self.raw else (sum(column.width for column in self.columns),)
        return Interface(kind="tabular", shape=shape, outputs=self._class_count())

    def collate(self, split: Split, indices: np.ndarray, *, seeds: np.ndarray | None = None, view: int = 0) -> Batch:
        inputs = dict.fromkeys(SIDES, table_tensor(split, indices))
        return batch_of(split, indices, inputs, class_target(split, indices), view)

    def shaped_by(self, batch: Batch, outputs: int) -> Self:
        return self.replace(shape=shape_of(batch.side("student")), classes=self._class_names(outputs))

    def preprocessing(self, side: Side) -> nn.Module:
        return nn.Identity() if self.raw else TabularPreprocessing(self.columns)

    def program(self, model: nn.Module, side: Side) -> nn.Module:
        return TabularProgram(self.preprocessing(side), model)

    def example(self, side: Side, batch: int = 2) -> dict[str, Tensor]:
        rows = torch.zeros(batch, *self._raw_shape()) if self.raw else table_example(self.columns, batch)
        return {"features": rows}

    def feed(self, batch: Batch, side: Side) -> dict[str, np.ndarray]:
        return feed_arrays("tabular", batch.side(side))

    def axes(self, side: Side) -> Mapping[str, Mapping[int, str]]:
        return {"features": {0: "batch"}}

    def _raw_shape(self) -> tuple[int, ...]:
        if self.shape is None:
            raise RecipeError("task.shape: not known; give the shape of one row")
        return self.shape
