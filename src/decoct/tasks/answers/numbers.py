"""Numbers: one or several predicted for each sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from decoct.data.base import Dataset, Split
from decoct.data.statistics import moments_of
from decoct.errors import DataError, RecipeError
from decoct.models.calls import Postprocessing, logits_of
from decoct.models.interface import Port
from decoct.outputs import Batch, Dense, Outputs
from decoct.store.codecs.base import Codec
from decoct.store.codecs.dense import DenseCodec
from decoct.tasks.answers.base import Answer, Over, Scores, Tally, Traces, dense, in_loss_type
from decoct.tasks.answers.classes import rows_checked
from decoct.tasks.answers.details import Details, NumberDetails
from decoct.tasks.answers.metrics import regression_scores
from decoct.tasks.inputs.base import Inputs


class Numbers(Answer):
    """Numbers, standardised inside: logits and targets are (value − mean) / std.

    Logits and target float32 `[B, D]`, NaN where the target must not be used. `target_mean` and `target_std` come from
    the training split. The loss is the squared error of standardised values, mean over D and over labelled samples. The
    exported file gives `values` in their own units, and scores are in them: rmse, mae, mse, r2.
    """

    use: ClassVar[str] = "numbers"
    distribution: ClassVar[bool] = False
    numbers: ClassVar[bool] = True
    scaled: ClassVar[bool] = True
    target_columns: ClassVar[tuple[str, ...]] = ("value",)
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()

    @property
    def metric(self) -> tuple[str, Literal["max", "min"]]:
        return "rmse", "min"

    @property
    def metrics(self) -> Mapping[str, Literal["max", "min"]]:
        return {**super().metrics, "mae": "min", "mse": "min", "r2": "max"}

    def resolve_answer(self, data: Dataset, inputs: Inputs) -> dict[str, Any]:
        if inputs.raw or (self.target_mean and self.target_std):
            return {}
        train = data.splits["train"]
        values = _values(train) if train.labelled is None else _values(train)[train.labelled]
        mean, std = (
            moments_of(len(values), 1, lambda part, at: np.ascontiguousarray(values[part, at]))
            if values.shape[1] == 1
            else (values.mean(axis=0), values.std(axis=0))
        )
        return {
            "target_mean": self.target_mean or tuple(mean.tolist()),
            "target_std": self.target_std or tuple(np.where(std > 0, std, 1.0).tolist()),
        }

    def gives(self, inputs: Inputs) -> dict[str, Port]:
        return {"logits": Port(kind="numbers", shape=(max(1, len(self.target_mean)),), axes={0: "batch"})}

    def shipped(self, inputs: Inputs) -> dict[str, Port]:
        return {"values": self.gives(inputs)["logits"]}

    def postprocessing(self) -> Postprocessing | None:
        return Destandardise(*self._scale())

    def meaning(self, inputs: Inputs, info: Mapping[str, Any]) -> dict[str, Any]:
        name = info.get("target")
        names = {"names": [name]} if isinstance(name, str) and len(self.target_mean) == 1 else {}
        return {"answer": "numbers", "output": next(iter(self.shipped(inputs))), **names}

    def target(self, split: Split, indices: np.ndarray, traces: Traces) -> Tensor:
        if "value" not in split.columns:
            return self.missing(len(indices))
        mean, std = self._scale()
        values = (_values(split)[indices] - mean) / std
        if split.labelled is not None:
            values[~split.labelled[indices]] = np.nan
        return torch.from_numpy(values.astype(np.float32))

    def given(self, value: Any) -> Tensor:
        target = torch.as_tensor(value, dtype=torch.float64)
        if target.ndim == 1:
            target = target.unsqueeze(-1)
        if target.ndim != 2:
            raise RecipeError(
                f"the loader's target has shape {list(target.shape)}; expected [batch] or [batch, outputs]"
            )
        mean, std = (torch.from_numpy(each).to(target.device) for each in self._scale())
        return ((target - mean) / std).float()

    def missing(self, count: int) -> Tensor:
        return torch.full((count, max(1, len(self.target_mean))), torch.nan)

    def outputs(self, raw: Outputs, batch: Batch, reader: str) -> Outputs:
        if raw.logits is not None and raw.logits.ndim == 1:
            raw = replace(raw, distribution=Dense(raw.logits.unsqueeze(-1)))
        return rows_checked(raw, len(self.target_mean))

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        assert outputs.logits is not None
        logits = in_loss_type(outputs.logits)
        if logits.shape != batch.target.shape:
            raise RecipeError(
                f"predictions {list(logits.shape)} and targets {list(batch.target.shape)} differ in shape"
            )
        labelled = self.labelled(batch)
        error = torch.where(labelled.unsqueeze(-1), logits - batch.target, 0.0)
        return error.square().mean(dim=-1).sum() / labelled.sum().clamp(min=1)

    def kept(self, batch: Batch, over: Over, reader: str = "student") -> Tensor | None:
        labelled: Tensor | None = batch.labelled
        return labelled if over == "labelled" else None

    def labelled(self, batch: Batch) -> Tensor:
        counted = ~torch.isnan(batch.target).any(dim=-1)
        return counted if batch.labelled is None else counted & batch.labelled

    def zeros(self, batch: Batch) -> Outputs:
        return Outputs(Dense(torch.zeros(len(batch), max(1, len(self.target_mean)))))

    def codec(self, keep: Codec) -> Codec:
        whole = DenseCodec(dtype="float32")
        if keep not in (whole, DenseCodec()):
            raise RecipeError(
                f"keep is {keep.use}, and the task predicts numbers, which are kept in float32; leave "
                "keep (top_k, tail, dtype) out"
            )
        return whole

    def from_file(self, arrays: Mapping[str, Tensor], batch: Batch, reader: str) -> Outputs:
        return Outputs(Dense(self.given(next(iter(arrays.values())))))

    def tally(self) -> Tally:
        return NumberTally(self)

    def details(self) -> Details | None:
        return NumberDetails(*self._scale())

    def in_units(self, standardised: np.ndarray) -> np.ndarray:
        """Predictions or targets `[N, D]` in their own units."""
        mean, std = self._scale()
        return standardised * std + mean

    def widths_of(self, width: int) -> dict[str, Any]:
        return {"target_mean": self.target_mean or (0.0,) * width, "target_std": self.target_std or (1.0,) * width}

    def _scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the target, float64 `[D]`; 0 and 1 where nothing was resolved."""
        return np.array(self.target_mean or (0.0,)), np.array(self.target_std or (1.0,))


class NumberTally(Tally):
    """rmse, mae, mse and r2 in the target's units, and the root of the mean squared difference to a reference."""

    def __init__(self, answer: Numbers) -> None:
        self._answer = answer
        self._predicted: list[np.ndarray] = []
        self._target: list[np.ndarray] = []
        self._differences: list[np.ndarray] = []

    def add(self, batch: Batch, raw: Outputs, reference: Outputs | None = None) -> None:
        answer, logits = self._answer, dense(raw)
        counted = answer.labelled(batch).cpu().numpy()
        self._predicted.append(answer.in_units(logits[counted]))
        self._target.append(answer.in_units(batch.target.cpu().double().numpy()[counted]))
        if reference is not None:
            self._differences.append((logits - dense(reference)) * answer._scale()[1])

    def scores(self) -> Scores:
        if not self._predicted:
            raise DataError("there is no batch to score on")
        fidelity = {}
        if self._differences:
            fidelity = {"rmse_to_teacher": float(np.sqrt(np.mean(np.concatenate(self._differences) ** 2)))}
        target = np.concatenate(self._target)
        if not len(target) and fidelity:
            return Scores({}, fidelity)
        return Scores(regression_scores(np.concatenate(self._predicted), target), fidelity)


class Destandardise(nn.Module):
    """Standardised predictions `[B, D]` (or `[B]` for D = 1) -> values in their own units, `[B, D]`."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: np.ndarray, std: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean).float())
        self.register_buffer("std", torch.from_numpy(std).float())

    def forward(self, raw: Any) -> Tensor:
        logits = logits_of(raw)
        rows = logits.unsqueeze(-1) if logits.ndim == 1 else logits
        return rows * self.std + self.mean


def _values(split: Split) -> np.ndarray:
    if "value" not in split.columns:
        if "label" in split.columns:
            raise RecipeError("the data hold classes; is it `task: {use: tabular_classification}`?")
        raise RecipeError(f"the data have {', '.join(split.columns)} and no numbers to predict")
    values = np.asarray(split.columns["value"], np.float64)
    return values[:, None] if values.ndim == 1 else values
