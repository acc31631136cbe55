"""EstimatorTeacher: trees and linear models of scikit-learn that answer as teachers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field

from decoct.models.onnx_file import open_session
from decoct.outputs import Batch, Dense, Needs, Outputs, Predictor
from decoct.teachers.base import Reading, Teacher
from decoct.teachers.onnx import file_of, file_predictor, refuse_needs, unchanged

TRAINED_ON = "trained_on.npy"
"""In the artifact of an estimator what the rows that it was fitted on look like: uint64 `[N]`, sorted."""


class EstimatorTeacher(Teacher):
    """An artifact of kind "estimator" under the teacher contract.

    Classes: logits are log(max(p, floor)), since a forest gives probabilities of exactly 0. Numbers: the prediction on
    the scale of the task's logits. `threads` inside an operator (None: as many as torch uses). `folds`: rows that it
    was fitted on are answered by so many further fits, each by one that has not seen it (out-of-fold); 1: by the
    estimator itself; None: 5 where it was fitted on the rows that it teaches. `floor`: the least probability of a
    class.
    """

    use: ClassVar[str] = "estimator"
    floor: float = Field(default=1e-6, gt=0, lt=1)
    threads: int | None = Field(default=None, ge=1)
    folds: int | None = Field(default=None, ge=1, exclude_if=lambda value: value is None)

    def open(
        self,
        subject: Any,
        reading: Reading,
        needs: Needs,
        *,
        device: torch.device | str = "cpu",
        autocast: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> AbstractContextManager[Predictor]:
        """A predictor while the body runs; `subject` is the Artifact."""
        refuse_needs(needs, self.use)
        return self._predictor(file_of(subject), reading)

    @contextmanager
    def _predictor(self, path: Path, reading: Reading) -> Iterator[Predictor]:
        with unchanged(path):
            session = open_session(path, threads=self.threads or torch.get_num_threads())
            answer = file_predictor(session, reading)

            def predict(batch: Batch) -> Outputs:
                outputs = answer(batch)
                if not reading.distribution or outputs.logits is None:
                    return outputs
                return replace(outputs, distribution=Dense(outputs.logits.clamp(min=math.log(self.floor))))

            yield predict
