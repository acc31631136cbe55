"""TrainEstimator: a scikit-learn model on the features that a network of the same task would get."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field
from torch import nn

from decoct.artifact import Artifact, writing
from decoct.data.base import Split
from decoct.data.sources import ordered
from decoct.data.splits import keep_labels
from decoct.errors import DataError, IntegrityError, RecipeError, dotted
from decoct.models.estimators.base import Estimator, is_classes
from decoct.models.estimators.growing import telling
from decoct.models.estimators.trees import fill
from decoct.models.interface import MAIN
from decoct.models.onnx_file import open_session
from decoct.outputs import Batch
from decoct.spec import Choice
from decoct.steps.base import TRAIN, Context, Inputs, Step, StepProblem
from decoct.steps.learning.batches import EVALUATION_BATCH, evaluation_batches, has_split, scores, splits_of
from decoct.steps.learning.estimators import features_of, labelled_rows, predicted
from decoct.targets import onnx
from decoct.teachers.estimator import TRAINED_ON
from decoct.teachers.onnx import FILE, file_predictor

if TYPE_CHECKING:
    from decoct.tasks.answers.base import Answer

OPSET = 20
TOLERANCE = 1e-5
"""Largest difference of a probability between the file and scikit-learn; for numbers, in standard deviations, 10 times
that."""
VERIFIED = 2048


class TrainEstimator(Step):
    """Trains a scikit-learn model and stores it as ONNX, with the preprocessing inside.

    `estimator` says which; `side` whose preprocessing its features go through; `labels`: how many training samples keep
    their label, drawn evenly over the classes. The file is compared with scikit-learn on real samples before it stands.
    The artifact says on which rows it was fitted, by key: as a teacher it is asked of these out-of-fold.
    """

    use: ClassVar[str] = "train_estimator"
    optional: ClassVar[Mapping[str, tuple[str, ...]]] = {TRAIN: ("data",)}
    version: ClassVar[int] = 2
    gives: ClassVar[str] = "estimator"
    learns: ClassVar[bool] = True

    estimator: Annotated[Estimator, Choice("decoct.models.estimators")]
    side: str = "student"
    labels: int | None = Field(default=None, ge=1)

    def problems_with(self, answer: Answer) -> Iterator[StepProblem]:
        """Labels counted by class, and an estimator of the other kind of answers."""
        if self.labels is not None and answer.scaled:
            message = f"labels is {self.labels} and the task is regression; give data.labels: {self.labels}"
            yield ("labels",), message, self.labels
        if answer.numbers and not self.estimator.predicts_numbers:
            message = f"{self.estimator.use} learns classes, the task has numbers; use linear"
            yield ("estimator",), message, self.estimator.use
        if answer.distribution and not self.estimator.predicts_classes:
            message = f"{self.estimator.use} predicts numbers, the task has classes; use logistic_regression"
            yield ("estimator",), message, self.estimator.use

    def run(self, inputs: Inputs, context: Context) -> Artifact:
        for setting, message, _ in self.problems_with(context.task.answer):
            raise RecipeError(f"{dotted(setting)}: {message}")
        features, target, keys = labelled_rows(_training(context, self.labels), context, self.side)
        context.progress(0, 3, f"{self.estimator.use} on {len(features)} samples")
        with telling(context.progress, f"{self.estimator.use} on {len(features)} samples"):
            fitted = self._fit(features, target, context.seed)
        module = self.estimator.module(fitted, context.task.reading(self.side).interface.width)
        context.progress(1, 3, "writing")
        meta = {
            "side": self.side,
            "seed": context.run_seed,
            "fit_seed": context.seed,
            "parameters": module.parameters_learned,
        }
        with writing(
            context.folder, kind="estimator", name=context.name, key=context.key, lineage=context.lineage, meta=meta
        ) as draft:
            path = self._write(module, context, draft.folder)
            draft.meta["verified"] = verified = _verified(fitted, path, context, self.side)
            context.progress(2, 3, "scoring")
            draft.scores.update(_validation(path, context, self.side))
            draft.write_json("estimator.json", {"estimator": self.estimator.plain(), **meta, "verified": verified})
            draft.write_json("task.json", context.task.plain())
            np.save(draft.folder / TRAINED_ON, np.unique(keys), allow_pickle=False)
            if draft.scores:
                record = {"kind": "validation", "step": 0, "epoch": 0, "scores": dict(draft.scores)}
                (draft.folder / "log.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
        return Artifact.load(context.folder)

    def _fit(self, features: np.ndarray, target: np.ndarray, seed: int) -> Any:
        if is_classes(target) and len(np.unique(target)) < 2:
            raise DataError("train_estimator: the labelled training samples are of one class; give it two at least")
        try:
            return self.estimator.fit(features, target, seed=seed)
        except RecipeError:
            raise
        except ValueError as error:
            raise RecipeError(f"estimator: {self.estimator.use} cannot learn from these data: {error}") from error

    def _write(self, module: nn.Module, context: Context, folder: Path) -> Path:
        reading = context.task.reading(self.side)
        proto = onnx.graph(reading.programs(module)[MAIN], opset=OPSET)
        fill(proto, module)
        return onnx.save(proto, folder / FILE)


def _training(context: Context, labels: int | None) -> Iterator[Batch]:
    split = splits_of(context).get("train")
    if labels is None or not isinstance(split, Split):
        return evaluation_batches(context, "train")
    return ordered(keep_labels(split, labels), context.collate, batch_size=EVALUATION_BATCH)


def _verified(fitted: Any, path: Path, context: Context, side: str) -> dict[str, float]:
    """The largest difference between the file and scikit-learn on real samples, and on how many classes agree."""
    reading = context.task.reading(side)
    predict = file_predictor(open_session(path), reading)
    preprocessing = reading.preprocessing().eval()
    worst, agreed, seen = 0.0, 0, 0
    limit = TOLERANCE if reading.distribution else 10 * TOLERANCE
    for batch in _verification(context):
        answer = predict(batch).logits
        assert answer is not None
        ours = answer.double().numpy()
        features = features_of(preprocessing, batch, side)
        theirs = predicted(fitted, features, ours.shape[1], distribution=reading.distribution)
        if reading.distribution:
            ours = np.exp(ours)
            agreed += int((ours.argmax(1) == theirs.argmax(1)).sum())
        else:
            agreed += int((np.abs(ours - theirs) <= limit).all(1).sum())
        worst, seen = max(worst, float(np.abs(ours - theirs).max())), seen + len(ours)
        if seen >= VERIFIED:
            break
    if not worst <= limit:
        raise IntegrityError(
            f"the exported estimator differs from scikit-learn by {worst:.2g}; at most {limit} is allowed"
        )
    return {"max_abs_diff": worst, "agreement": agreed / seen, "samples": float(seen)}


def _verification(context: Context) -> Iterator[Batch]:
    name = next(name for name in ("validation", "train") if has_split(context, name))
    return evaluation_batches(context, name)


def _validation(path: Path, context: Context, side: str) -> Mapping[str, float]:
    if not has_split(context, "validation"):
        return {}
    return scores(file_predictor(open_session(path), context.task.reading(side)), context, "validation")
