"""Regression: numbers predicted from rows of a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from decoct.data.base import Dataset, Split
from decoct.errors import DataError, RecipeError
from decoct.models.base import Interface
from decoct.outputs import Batch, Dense, Outputs, Predictor
from decoct.tasks.base import Side
from decoct.tasks.calls import Kind, TabularProgram, logits_of
from decoct.tasks.metrics import regression_scores
from decoct.tasks.supervised import (
    SIDES,
    Supervised,
    batch_of,
    checked_logits,
    feed_arrays,
    logits_on,
    predictions,
    shape_of,
)
from decoct.tasks.tabular import (
    Column,
    Encoding,
    TabularPreprocessing,
    table_columns,
    table_example,
    table_tensor,
)


class Regression(Supervised):
    """Numbers predicted from rows of a table, standardised inside: logits and targets are (value − mean) / std.

    Logits and target float32 `[B, D]`, NaN where the target must not be used. `target_mean` and `target_std`, and the
    `columns`, come from the training split. The loss is the squared error of standardised values, mean over D and over
    labelled samples. The exported file gives `values` in their own units, and scores are in them: rmse, mae, r2.
    """

    use: ClassVar[str] = "regression"
    output: ClassVar[str] = "values"
    encoding: Encoding = "one_hot"
    columns: tuple[Column, ...] = ()
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
    shape: tuple[int, ...] | None = None

    @property
    def kind(self) -> Kind:
        return "tabular"

    @property
    def metric(self) -> tuple[str, Literal["max", "min"]]:
        return "rmse", "min"

    def resolve(self, data: Dataset) -> Self:
        if self.raw or (self.columns and self.target_mean and self.target_std):
            return self
        train = data.splits["train"]
        if "value" not in train.columns:
            raise RecipeError("regression: the data hold classes; is it `task: {use: tabular_classification}`?")
        known = train if train.labelled is None else train.take(np.flatnonzero(train.labelled))
        values = _values(known)
        std = values.std(axis=0)
        return self.replace(
            columns=self.columns or table_columns(data, self.encoding),
            target_mean=self.target_mean or tuple(values.mean(axis=0).tolist()),
            target_std=self.target_std or tuple(np.where(std > 0, std, 1.0).tolist()),
        )

    def interface(self, side: Side) -> Interface:
        shape = self._raw_shape() if self.raw else (sum(column.width for column in self.columns),)
        return Interface(kind="tabular", shape=shape, outputs=max(1, len(self.target_mean)))

    def collate(self, split: Split, indices: np.ndarray, *, seeds: np.ndarray | None = None, view: int = 0) -> Batch:
        inputs = dict.fromkeys(SIDES, table_tensor(split, indices))
        if "value" not in split.columns:
            return batch_of(split, indices, inputs, self.unlabelled(len(indices)), view)
        mean, std = self._scale()
        values = (_values(split)[indices] - mean) / std
        if split.labelled is not None:
            values[~split.labelled[indices]] = np.nan
        return batch_of(split, indices, inputs, torch.from_numpy(values.astype(np.float32)), view)

    def shaped_by(self, batch: Batch, outputs: int) -> Self:
        scale = {"target_mean": self.target_mean or (0.0,) * outputs, "target_std": self.target_std or (1.0,) * outputs}
        return self.replace(shape=shape_of(batch.side("student")), **scale)

    def preprocessing(self, side: Side) -> nn.Module:
        return nn.Identity() if self.raw else TabularPreprocessing(self.columns)

    def outputs(self, raw: Any) -> Outputs:
        logits = logits_of(raw)
        if logits.ndim == 1:
            logits = logits.unsqueeze(-1)
        return Outputs(Dense(checked_logits(logits, len(self.target_mean))))

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        assert outputs.logits is not None
        logits = outputs.logits if outputs.logits.dtype == torch.float64 else outputs.logits.float()
        if logits.shape != batch.target.shape:
            raise RecipeError(
                f"predictions {list(logits.shape)} and targets {list(batch.target.shape)} differ in shape"
            )
        labelled = self.labelled(batch)
        error = torch.where(labelled.unsqueeze(-1), logits - batch.target, 0.0)
        return error.square().mean(dim=-1).sum() / labelled.sum().clamp(min=1)

    def labelled(self, batch: Batch) -> Tensor:
        counted = ~torch.isnan(batch.target).any(dim=-1)
        return counted if batch.labelled is None else counted & batch.labelled

    def score(self, predict: Predictor, batches: Iterable[Batch]) -> dict[str, float]:
        mean, std = self._scale()
        predicted, target = [], []
        for batch, logits in predictions(predict, batches):
            counted = self.labelled(batch).cpu().numpy()
            predicted.append(logits[counted] * std + mean)
            target.append(batch.target.cpu().double().numpy()[counted] * std + mean)
        if not predicted:
            raise DataError("there is no batch to score on")
        return regression_scores(np.concatenate(predicted), np.concatenate(target))

    def fidelity(self, predict: Predictor, teacher: Predictor, batches: Iterable[Batch]) -> dict[str, float]:
        std = self._scale()[1]
        differences = [(logits_on(predict, batch) - logits_on(teacher, batch)) * std for batch in batches]
        if not differences:
            raise DataError("there is no batch to compare on")
        return {"rmse_to_teacher": float(np.sqrt(np.mean(np.concatenate(differences) ** 2)))}

    def program(self, model: nn.Module, side: Side) -> nn.Module:
        return TabularProgram(self.preprocessing(side), model, Destandardise(*self._scale()))

    def example(self, side: Side, batch: int = 2) -> dict[str, Tensor]:
        rows = torch.zeros(batch, *self._raw_shape()) if self.raw else table_example(self.columns, batch)
        return {"features": rows}

    def feed(self, batch: Batch, side: Side) -> dict[str, np.ndarray]:
        return feed_arrays("tabular", batch.side(side))

    def axes(self, side: Side) -> Mapping[str, Mapping[int, str]]:
        return {"features": {0: "batch"}}

    def target_of(self, value: Any) -> Tensor:
        target = torch.as_tensor(value, dtype=torch.float64)
        if target.ndim == 1:
            target = target.unsqueeze(-1)
        if target.ndim != 2:
            raise RecipeError(
                f"the loader's target has shape {list(target.shape)}; expected [batch] or [batch, outputs]"
            )
        mean, std = (torch.from_numpy(each).to(target.device) for each in self._scale())
        return ((target - mean) / std).float()

    def unlabelled(self, count: int) -> Tensor:
        return torch.full((count, max(1, len(self.target_mean))), torch.nan)

    def _scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the target, float64 `[D]`; 0 and 1 where nothing was resolved."""
        return np.array(self.target_mean or (0.0,)), np.array(self.target_std or (1.0,))

    def _raw_shape(self) -> tuple[int, ...]:
        if self.shape is None:
            raise RecipeError("task.shape: not known; give the shape of one row")
        return self.shape


class Destandardise(nn.Module):
    """Standardised predictions `[B, D]` (or `[B]` for D = 1) -> values in their own units, `[B, D]`."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: np.ndarray, std: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean).float())
        self.register_buffer("std", torch.from_numpy(std).float())

    def forward(self, logits: Tensor) -> Tensor:
        rows = logits.unsqueeze(-1) if logits.ndim == 1 else logits
        return rows * self.std + self.mean


def _values(split: Split) -> np.ndarray:
    values = np.asarray(split.columns["value"], np.float64)
    return values[:, None] if values.ndim == 1 else values
