"""Classes: one class for each sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from decoct.data.base import Dataset, Split
from decoct.errors import DataError, RecipeError
from decoct.models.interface import Port
from decoct.outputs import Batch, Dense, Outputs
from decoct.tasks.answers.base import IGNORED, Answer, Over, Scores, Tally, Traces, dense, in_loss_type
from decoct.tasks.answers.details import ClassDetails, Details
from decoct.tasks.answers.metrics import ClassFidelity, ClassScores
from decoct.tasks.inputs.base import Inputs


class OneClass(Answer):
    """One class for each sample; logits `[B, classes]`, target int64 `[B]`, -100 where the label must not be used.

    A mixed batch has distributions over classes as target, float32 `[B, classes]`, NaN where they must not be used.

    `classes`: names, from the data where left out; `metric_name`: the metric by which models are chosen.
    """

    mixes_targets: ClassVar[bool] = True
    target_columns: ClassVar[tuple[str, ...]] = ("label",)
    of_two: ClassVar[Literal["auc"] | None] = None
    """The main metric where there are two classes, unless `metric_name` says otherwise."""

    classes: tuple[str, ...] = ()
    metric_name: Literal["accuracy", "auc", "f1"] | None = None

    @property
    def metric(self) -> tuple[str, Literal["max", "min"]]:
        return self.metric_name or "accuracy", "max"

    @property
    def metrics(self) -> Mapping[str, Literal["max", "min"]]:
        return {
            **super().metrics,
            "accuracy": "max",
            "f1": "max",
            "auc": "max",
            "average_precision": "max",
            "cross_entropy": "min",
            "taylor_cross_entropy": "min",
            "ece": "min",
        }

    @property
    def names(self) -> tuple[str, ...]:
        return self.classes

    def renamed(self, names: tuple[str, ...]) -> dict[str, Any]:
        return {"classes": names} if names != self.classes else {}

    def resolve_answer(self, data: Dataset, inputs: Inputs) -> dict[str, Any]:
        if inputs.raw:
            return {}
        classes = self.classes or data.classes
        if not classes:
            raise RecipeError("the data have no classes; is it `task: {use: regression}`?")
        found: dict[str, Any] = {} if self.classes else {"classes": classes}
        if self.of_two is not None and self.metric_name is None:
            found["metric_name"] = self.of_two if len(classes) == 2 else "accuracy"
        return found

    def gives(self, inputs: Inputs) -> dict[str, Port]:
        if not self.classes:
            raise RecipeError("task.classes: not known; give the names of the classes")
        return {"logits": Port(kind="logits", shape=(len(self.classes),), axes={0: "batch"})}

    def meaning(self, inputs: Inputs, info: Mapping[str, Any]) -> dict[str, Any]:
        return {"answer": "classes", "output": next(iter(self.shipped(inputs))), "classes": list(self.classes)}

    def target(self, split: Split, indices: np.ndarray, traces: Traces) -> Tensor:
        return class_target(split, indices)

    def given(self, value: Any) -> Tensor:
        target = torch.as_tensor(value)
        if target.is_floating_point() or target.ndim != 1:
            raise RecipeError(
                f"the loader's target is {target.dtype} {list(target.shape)}; expected class ids, int64 [batch]"
            )
        target = target.long()
        if self.classes:
            refuse_other_ids(target, len(self.classes))
        return target

    def missing(self, count: int) -> Tensor:
        return torch.full((count,), IGNORED)

    def outputs(self, raw: Outputs, batch: Batch, reader: str) -> Outputs:
        return rows_checked(raw, len(self.classes))

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        assert outputs.logits is not None
        logits = in_loss_type(outputs.logits)
        if batch.target.is_floating_point():
            return _mixed_loss(logits, batch.target, self.labelled(batch))
        if batch.labelled is None:
            return F.cross_entropy(logits, batch.target, ignore_index=IGNORED)
        labelled = self.labelled(batch)
        target = torch.where(labelled, batch.target, IGNORED)
        total = F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
        return total / labelled.sum().clamp(min=1)

    def kept(self, batch: Batch, over: Over, reader: str = "student") -> Tensor | None:
        labelled: Tensor | None = batch.labelled
        return labelled if over == "labelled" else None

    def labelled(self, batch: Batch) -> Tensor:
        soft = batch.target.is_floating_point()
        counted: Tensor = ~batch.target.isnan().any(-1) if soft else batch.target != IGNORED
        return counted if batch.labelled is None else counted & batch.labelled

    def hard_target(self, batch: Batch) -> Tensor | None:
        if batch.target.is_floating_point():
            return None
        return batch.target if batch.labelled is None else torch.where(batch.labelled, batch.target, IGNORED)

    def zeros(self, batch: Batch) -> Outputs:
        return Outputs(Dense(torch.zeros(len(batch), max(1, len(self.classes)))))

    def mixed(self, own: Batch, other: Batch, share: Tensor) -> Tensor:
        classes = len(self.classes)
        part = share.unsqueeze(-1)
        a, b = one_hot(own.target, classes), one_hot(other.target, classes)
        mixed = torch.where(part < 1, part * a + (1 - part) * b, a)
        known = own.target != IGNORED
        if own.labelled is not None:
            known = known & own.labelled
        return torch.where(known.unsqueeze(-1), mixed, torch.nan)

    def from_file(self, arrays: Mapping[str, Tensor], batch: Batch, reader: str) -> Outputs:
        return Outputs(Dense(next(iter(arrays.values()))))

    def tally(self) -> Tally:
        return ClassTally(self)

    def details(self) -> Details | None:
        return ClassDetails(self.classes) if self.classes else None

    def widths_of(self, width: int) -> dict[str, Any]:
        return {"classes": self.names_for(width)}

    def names_for(self, width: int) -> tuple[str, ...]:
        """The names that are known, or numbers for them."""
        if self.classes and len(self.classes) != width:
            raise RecipeError(f"task.classes: {len(self.classes)} names, the model gives {width} logits")
        return self.classes or tuple(map(str, range(width)))


class Classes(OneClass):
    """One class for each sample; accuracy is the main metric."""

    use: ClassVar[str] = "classes"


class RowClasses(OneClass):
    """One class for each row; of two classes the area under the ROC curve is the main metric."""

    use: ClassVar[str] = "row_classes"
    of_two: ClassVar[Literal["auc"] | None] = "auc"


class ClassTally(Tally):
    """Accuracy, F1, areas and calibration of labelled samples; agreement and KL to a reference over all of them."""

    def __init__(self, answer: OneClass) -> None:
        self._answer = answer
        self._scores, self._fidelity = ClassScores(answer.metric[0]), ClassFidelity()

    def add(self, batch: Batch, raw: Outputs, reference: Outputs | None = None) -> None:
        logits = dense(raw)
        counted = self._answer.labelled(batch).cpu().numpy()
        self._scores.add(logits[counted], batch.target.cpu().numpy()[counted])
        if reference is not None:
            self._fidelity.add(logits, dense(reference))

    def scores(self) -> Scores:
        quality = self._scores.scores() if self._scores.count or not self._fidelity.count else {}
        if not quality:
            return Scores({}, self._fidelity.scores())
        matrix = self._scores.confusion()
        names, counts = self._answer.names_for(len(matrix)), matrix.sum(axis=1)
        per_class = {name: float(matrix[i, i] / counts[i]) for i, name in enumerate(names) if counts[i]}
        return Scores(quality, self._fidelity.scores(), per_class, (names, matrix))


def rows_checked(raw: Outputs, width: int) -> Outputs:
    """The outputs; RecipeError unless logits are `[B, width]` (any width where it is 0)."""
    logits = raw.logits
    if logits is None or logits.ndim != 2 or (width and logits.shape[1] != width):
        expected = f"[batch, {width or 'classes'}]"
        raise RecipeError(
            f"the model returned logits {None if logits is None else list(logits.shape)}; expected {expected}"
        )
    return raw


def class_target(split: Split, indices: np.ndarray, column: str = "label") -> Tensor:
    """int64 `[B]` labels, -100 where the split does not let them be used or has none."""
    if column not in split.columns:
        return torch.full((len(indices),), IGNORED)
    labels = split.columns[column][indices]
    if split.labelled is not None:
        labels = np.where(split.labelled[indices], labels, IGNORED)
    return torch.from_numpy(np.ascontiguousarray(labels, np.int64))


def one_hot(target: Tensor, classes: int) -> Tensor:
    """float32 `[B, C]` of class ids `[B]`; NaN where they are -100.

    >>> one_hot(torch.tensor([1, -100]), 2).tolist()
    [[0.0, 1.0], [nan, nan]]
    """
    known = (target != IGNORED).unsqueeze(-1)
    found = torch.zeros(len(target), classes).scatter(-1, target.clamp(min=0).unsqueeze(-1), 1.0)
    return torch.where(known, found, torch.nan)


def _mixed_loss(logits: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
    """−Σ_c t_c log q_c, mean over the labelled samples."""
    known = torch.where(labelled.unsqueeze(-1), target.to(logits.dtype), 0.0)
    log_q = F.log_softmax(logits, dim=-1)
    return -torch.where(known == 0, 0.0, known * log_q).sum() / labelled.sum().clamp(min=1)


def refuse_other_ids(target: Tensor, classes: int) -> None:
    """DataError where a loader's target on the CPU holds other ids than those of classes and -100."""
    if target.device.type != "cpu":
        return
    wrong = target[(target >= classes) | ((target < 0) & (target != IGNORED))]
    if len(wrong):
        listed = sorted({int(each) for each in wrong})[:5]
        raise DataError(f"the loader's target holds {listed}; classes are 0 to {classes - 1}")
