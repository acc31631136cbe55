"""Classification: what tasks with one class a sample share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from decoct.data.base import Split
from decoct.errors import DataError, RecipeError
from decoct.outputs import Batch, Dense, Outputs, Predictor
from decoct.tasks.metrics import class_fidelity, classification_scores, confusion_matrix
from decoct.tasks.supervised import Supervised, checked_logits, logits_on, predictions

IGNORED = -100


class Classification(Supervised):
    """One class for each sample; logits `[B, classes]`, target int64 `[B]`, -100 where the label must not be used.

    A mixed batch has distributions over classes as target, float32 `[B, classes]`, NaN where they must not be used.

    `classes`: names, from the data where left out; `metric_name`: the metric by which models are chosen.
    """

    classes: tuple[str, ...] = ()
    metric_name: Literal["accuracy", "auc", "f1"] | None = None

    @property
    def metric(self) -> tuple[str, Literal["max", "min"]]:
        return self.metric_name or "accuracy", "max"

    def outputs(self, raw: Any) -> Outputs:
        return Outputs(Dense(checked_logits(raw, len(self.classes))))

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        assert outputs.logits is not None
        logits = outputs.logits if outputs.logits.dtype == torch.float64 else outputs.logits.float()
        if batch.target.is_floating_point():
            return _mixed_loss(logits, batch.target, self.labelled(batch))
        if batch.labelled is None:
            return F.cross_entropy(logits, batch.target, ignore_index=IGNORED)
        labelled = self.labelled(batch)
        target = torch.where(labelled, batch.target, IGNORED)
        total = F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
        return total / labelled.sum().clamp(min=1)

    def labelled(self, batch: Batch) -> Tensor:
        soft = batch.target.is_floating_point()
        counted: Tensor = ~batch.target.isnan().any(-1) if soft else batch.target != IGNORED
        return counted if batch.labelled is None else counted & batch.labelled

    def score(self, predict: Predictor, batches: Iterable[Batch]) -> dict[str, float]:
        logits, labels = self._labelled_logits(predict, batches)
        return classification_scores(logits, labels, self.metric[0])

    def fidelity(self, predict: Predictor, teacher: Predictor, batches: Iterable[Batch]) -> dict[str, float]:
        pairs = [(logits_on(predict, batch), logits_on(teacher, batch)) for batch in batches]
        if not pairs:
            raise DataError("there is no batch to compare on")
        return class_fidelity(np.concatenate([own for own, _ in pairs]), np.concatenate([other for _, other in pairs]))

    def confusion(self, predict: Predictor, batches: Iterable[Batch]) -> tuple[tuple[str, ...], np.ndarray]:
        """Class names and int64 `[C, C]`: rows are the labels, columns what was predicted."""
        logits, labels = self._labelled_logits(predict, batches)
        count = logits.shape[1]
        return self._class_names(count), confusion_matrix(logits.argmax(axis=1), labels, count)

    def per_class(self, predict: Predictor, batches: Iterable[Batch]) -> dict[str, float]:
        """Accuracy (recall) of each class that has labelled samples, by its name."""
        names, matrix = self.confusion(predict, batches)
        counts = matrix.sum(axis=1)
        return {name: float(matrix[i, i] / counts[i]) for i, name in enumerate(names) if counts[i]}

    def target_of(self, value: Any) -> Tensor:
        target = torch.as_tensor(value)
        if target.is_floating_point() or target.ndim != 1:
            raise RecipeError(
                f"the loader's target is {target.dtype} {list(target.shape)}; expected class ids, int64 [batch]"
            )
        target = target.long()
        if self.classes and target.device.type == "cpu" and (wrong := _outside(target, len(self.classes))):
            raise DataError(f"the loader's target holds {wrong}; classes are 0 to {len(self.classes) - 1}")
        return target

    def unlabelled(self, count: int) -> Tensor:
        return torch.full((count,), IGNORED)

    def _class_names(self, outputs: int) -> tuple[str, ...]:
        """The names that are known, or numbers for them."""
        if self.classes and len(self.classes) != outputs:
            raise RecipeError(f"task.classes: {len(self.classes)} names, the model gives {outputs} logits")
        return self.classes or tuple(map(str, range(outputs)))

    def _class_count(self) -> int:
        if not self.classes:
            raise RecipeError("task.classes: not known; give the names of the classes")
        return len(self.classes)

    def _labelled_logits(self, predict: Predictor, batches: Iterable[Batch]) -> tuple[np.ndarray, np.ndarray]:
        logits, labels = [], []
        for batch, each in predictions(predict, batches):
            counted = self.labelled(batch).cpu().numpy()
            logits.append(each[counted])
            labels.append(batch.target.cpu().numpy()[counted])
        if not logits:
            raise DataError("there is no batch to score on")
        return np.concatenate(logits), np.concatenate(labels)


def class_target(split: Split, indices: np.ndarray) -> Tensor:
    """int64 `[B]` labels, -100 where the split does not let them be used or has none."""
    if "label" not in split.columns:
        return torch.full((len(indices),), IGNORED)
    labels = split.columns["label"][indices]
    if split.labelled is not None:
        labels = np.where(split.labelled[indices], labels, IGNORED)
    return torch.from_numpy(np.ascontiguousarray(labels, np.int64))


def _mixed_loss(logits: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
    """−Σ_c t_c log q_c, mean over the labelled samples."""
    known = torch.where(labelled.unsqueeze(-1), target.to(logits.dtype), 0.0)
    log_q = F.log_softmax(logits, dim=-1)
    return -torch.where(known == 0, 0.0, known * log_q).sum() / labelled.sum().clamp(min=1)


def _outside(target: Tensor, classes: int) -> list[int]:
    wrong = target[(target >= classes) | ((target < 0) & (target != IGNORED))]
    return sorted({int(each) for each in wrong})[:5]
