"""Out-of-fold answers: an estimator is fitted again, so that no row is answered by a model that has seen it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from decoct.artifact import Artifact, write_whole
from decoct.data.base import Split
from decoct.data.sources import ordered
from decoct.errors import RecipeError
from decoct.models.estimators.base import TINY, is_classes
from decoct.outputs import Predictor
from decoct.spec import Choice
from decoct.steps.base import Context
from decoct.steps.learning.batches import EVALUATION_BATCH, splits_of
from decoct.steps.learning.estimators import labelled_rows, predicted
from decoct.tasks.inputs.base import STUDENT
from decoct.teachers.estimator import TRAINED_ON, EstimatorTeacher
from decoct.teachers.folded import assigned, out_of_fold

if TYPE_CHECKING:
    from decoct.tasks.base import Task

FOLDS = 5
"""How many folds there are where nobody says."""


class CannotFold(RecipeError):
    """Why an estimator cannot be fitted again in folds, and what to do instead."""


@dataclass(frozen=True)
class Folds:
    """How an estimator answers the rows that it was fitted on: in `count` folds.

    `features` float32 `[M, F]`, `target` and `keys` uint64 `[M]` of these rows, some of which may be alike; `folds`
    int64 `[M]`, which fold each is in; `task` in which it answers.
    """

    estimator: Artifact
    task: Task
    count: int
    features: np.ndarray
    target: np.ndarray
    keys: np.ndarray
    folds: np.ndarray

    def answers(self, context: Context) -> tuple[np.ndarray, np.ndarray]:
        """Keys uint64 `[N]`, sorted, and logits float32 `[N, C]` of these rows; worked out once in a step, on disk."""
        parts = [self.estimator.hash, context.data.fingerprint, self.task.digest(), self.count]
        name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        path = context.work / "folds" / f"{name}.npz"

        def worked_out() -> Path:
            if not path.is_file():
                content = io.BytesIO()
                keys, first = np.unique(self.keys, return_index=True)
                np.savez(content, keys=keys, logits=self._logits(context)[first])
                write_whole(path, content.getvalue())
            return path

        with np.load(context.processes.alone(worked_out, lambda: path), allow_pickle=False) as found:
            return found["keys"], found["logits"]

    def _logits(self, context: Context) -> np.ndarray:
        plain = self.estimator.json("estimator.json")
        spec = Choice("decoct.models.estimators").validate(plain["estimator"])
        reading = self.task.reading(plain["side"])
        width = reading.interface.width
        found = np.zeros((len(self.keys), width))
        for number in range(self.count):
            context.progress(number, self.count, f"{self.estimator.name}: fold {number + 1} of {self.count}")
            held_out = self.folds == number
            fitted = spec.fit(self.features[~held_out], self.target[~held_out], seed=int(plain["fit_seed"]))
            found[held_out] = predicted(fitted, self.features[held_out], width, distribution=reading.distribution)
        logits: np.ndarray = np.log(np.maximum(found, TINY)) if reading.distribution else found
        return logits.astype(np.float32)


def folds_of(estimator: Artifact, role: str, context: Context, task: Task, asked: int | None) -> Folds | None:
    """The folds in which an estimator answers; None where it answers by itself alone.

    `asked` of them: None for those that are needed where it was fitted on rows that it teaches, 1 for none. RecipeError
    where more than 1 is asked for and they cannot be made; a warning where they would be needed and cannot.
    """
    if asked == 1:
        return None
    try:
        return _found(estimator, role, context, task, asked)
    except CannotFold as error:
        if asked is not None:
            raise RecipeError(f"folds is {asked}, and {error}") from None
        warnings.warn(
            f"{role} may teach rows that it was fitted on, of which it repeats the targets: {error}", stacklevel=3
        )
        return None


def _found(estimator: Artifact, role: str, context: Context, task: Task, asked: int | None) -> Folds | None:
    path = estimator.folder / TRAINED_ON
    if not path.is_file():
        raise CannotFold(f"{role} ({estimator.folder}) does not say which rows it was fitted on; train it again")
    trained = np.load(path, allow_pickle=False)
    split = splits_of(context).get("train")
    if not isinstance(split, Split):
        raise CannotFold("the data are loaders, which are not read twice; give a data set that decoct reads")
    shared = np.isin(context.task.inputs(STUDENT).seen(split, np.arange(len(split)), None), trained)
    if split.labelled is not None:
        shared &= split.labelled
    if not shared.any() or not task.answer.has_target(split):
        return None
    own = replace(context, task=task)
    batches = ordered(split.take(np.flatnonzero(shared)), own.collate, batch_size=EVALUATION_BATCH)
    features, target, keys = labelled_rows(batches, own, str(estimator.meta["side"]))
    there = len(np.unique(keys))
    if asked is None and there < len(trained):
        raise CannotFold(
            f"only {there:,} of its {len(trained):,} rows are there to fit it again; say teachers.{role}: {{use: "
            f"estimator, folds: {FOLDS}}} to fit on these, or folds: 1 to take it as it is"
        )
    count = asked or FOLDS
    return Folds(estimator, task, count, features, target, keys, _assigned(keys, target, count, role))


def _assigned(keys: np.ndarray, target: np.ndarray, count: int, role: str) -> np.ndarray:
    """The fold of each row, evenly over classes, rows that are alike in one; CannotFold where a fit has too little."""
    instead = f"say teachers.{role}: {{use: estimator, folds: 1}} to take it as it is"
    unique, first, back = np.unique(keys, return_index=True, return_inverse=True)
    if len(unique) < count:
        raise CannotFold(f"{len(unique)} rows are too few for {count} folds; {instead}")
    classes = is_classes(target)
    found: np.ndarray = assigned(unique, target[first] if classes else np.zeros(len(unique), np.int64), count)[back]
    if classes and any(len(np.unique(target[found != each])) < 2 for each in range(count)):
        raise CannotFold(f"with {count} folds a fit would see one class alone; {instead}")
    return found


@contextlib.contextmanager
def answering_out_of_fold(
    folds: Folds, kind: EstimatorTeacher, context: Context, opened: contextlib.AbstractContextManager[Predictor]
) -> Iterator[Predictor]:
    """An estimator that answers the rows that it was fitted on out-of-fold, and others as it was `opened`."""
    keys, logits = folds.answers(context)
    known = torch.from_numpy(logits)
    if folds.task.answer.distribution:
        known = known.clamp(min=math.log(kind.floor))
    with opened as whole:
        yield out_of_fold(whole, keys, known)
