"""Boxes of a teacher as targets of a student of another kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from decoct.errors import RecipeError
from decoct.models.boxes import box_target_loss
from decoct.objectives.base import Objective, Probe, Term
from decoct.outputs import Batch, Outputs
from decoct.training.clock import Clock

__all__ = ["BoxTargets", "BoxTargetsTerm", "box_target_loss"]
READS = ("raw_boxes", "raw_scores", "points")


class BoxTargets(Objective):
    """The student's own box loss with the teacher's boxes as truth, those of a score above `above`.

    Teacher and student may be unlike (two stages, one stage): only boxes pass between them. The mean goes over images;
    `on: unlabelled` leaves those to the labels that have some. Needs a student that gives raw heads (small_detector).
    """

    use: ClassVar[str] = "box_targets"
    above: float = Field(default=0.5, ge=0, lt=1)

    def build(self, probe: Probe) -> Term:
        missing = [name for name in READS if name not in probe.student.values]
        if missing:
            raise RecipeError(
                f"{self.label}: the student gives no {', '.join(missing)}; it needs a one-stage detector, such as "
                "small_detector"
            )
        for name, teacher in probe.teachers.items():
            if not {"boxes", "scores", "labels", "valid"} <= set(teacher.values):
                raise RecipeError(f"{self.label}: teacher {name!r} gives no boxes; it needs a detector, or its store")
        return BoxTargetsTerm(self.above)


class BoxTargetsTerm(Term):
    """Compares whole images."""

    def __init__(self, above: float) -> None:
        super().__init__()
        self._above = above

    def forward(self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock) -> Tensor:
        (teacher,) = teachers.values()
        rows = zip(*(teacher.values[name] for name in ("boxes", "labels", "scores", "valid")))
        targets = []
        for boxes, labels, scores, valid in rows:
            sure = valid & (scores > self._above)
            targets.append({"boxes": boxes[sure], "labels": labels[sure]})
        raw_boxes, raw_scores, points = (student.values[name] for name in READS)
        return box_target_loss(raw_boxes, raw_scores, points[0], targets)

    def items(self, batch: Batch) -> Tensor | int:
        return len(batch)
