"""EstimatorTeacher: trees and linear models of scikit-learn that answer as teachers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field

from decoct.models.onnx_file import open_session
from decoct.outputs import Batch, Needs, Outputs, Predictor
from decoct.teachers.base import Teacher
from decoct.teachers.onnx import file_of, file_predictor, refuse_needs, unchanged

if TYPE_CHECKING:
    from decoct.teachers.task import Task


class EstimatorTeacher(Teacher):
    """An artifact of kind "estimator" under the teacher contract.

    Classes: logits are log(max(p, floor)), since a forest gives probabilities of exactly 0. Numbers: the prediction on
    the scale of the task's logits. `threads` inside an operator (None: as many as torch uses).
    """

    use: ClassVar[str] = "estimator"
    floor: float = Field(default=1e-6, gt=0, lt=1)
    threads: int | None = Field(default=None, ge=1)

    def open(
        self,
        subject: Any,
        task: Task,
        needs: Needs,
        *,
        side: str,
        device: torch.device | str = "cpu",
        autocast: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> AbstractContextManager[Predictor]:
        """A predictor while the body runs; `subject` is the Artifact."""
        refuse_needs(needs, self.use)
        path, side = file_of(subject, side)
        return self._predictor(path, task, side)

    @contextmanager
    def _predictor(self, path: Path, task: Task, side: str) -> Iterator[Predictor]:
        with unchanged(path):
            session = open_session(path, threads=self.threads or torch.get_num_threads())
            answer = file_predictor(session, task, side)

            def predict(batch: Batch) -> Outputs:
                outputs = answer(batch)
                if task.output != "logits" or outputs.logits is None:
                    return outputs
                return replace(outputs, logits=outputs.logits.clamp(min=math.log(self.floor)))

            yield predict
