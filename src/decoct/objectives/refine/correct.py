"""The teacher's answer where it contradicts a trusted label."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from decoct.objectives.refine.base import Lesson, Refinement, known_targets
from decoct.objectives.refine.smooth import uniform_log
from decoct.outputs import Batch
from decoct.training.clock import Clock

How = Literal["swap", "replace", "leave_out"]


def contradicted(teacher: Tensor, target: Tensor) -> Tensor:
    """Bool `[*B]`: some class has a larger logit than the label's; `target` int64 `[*B]`. A tie is no contradiction."""
    return teacher.amax(-1) > teacher.gather(-1, target.unsqueeze(-1)).squeeze(-1)


def swapped(teacher: Tensor, target: Tensor) -> Tensor:
    """Logits `[*B, C]` with those of the label and of the most likely class exchanged (probability shift).

    >>> swapped(torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([1])).tolist()
    [[1.0, 3.0, 0.0]]
    """
    best, label = teacher.argmax(-1, keepdim=True), target.unsqueeze(-1)
    highest, own = teacher.gather(-1, best), teacher.gather(-1, label)
    return teacher.scatter(-1, best, own).scatter(-1, label, highest)


class LabelCorrection(Refinement):
    """Puts the teacher right where its most likely class is not the label; other answers stay as they are.

    `how`: `swap` exchanges the two probabilities (probability shift), `replace` takes the label smoothed by
    `smoothing` instead (label smooth regularization), `leave_out` drops the item, which counts as 0 in the mean. Labels
    are trusted where the task may use them; unlabelled and mixed samples, and those whose class is −inf to the
    teacher, stay. Wen et al. 2021, arXiv 1911.07471, section 3.
    """

    use: ClassVar[str] = "correct"
    labels: ClassVar[bool] = True
    how: How = "swap"
    smoothing: float = Field(default=0.1, ge=0, lt=1)

    def refine(self, lesson: Lesson, batch: Batch, clock: Clock) -> Lesson:
        teacher = lesson.logits(self.use)
        soft, known = known_targets(lesson, teacher, batch)
        label = soft.argmax(-1)
        possible = teacher.gather(-1, label.unsqueeze(-1)).squeeze(-1) != -torch.inf
        wrong = known & possible & (soft.amax(-1) == 1) & contradicted(teacher, label)
        if self.how == "leave_out":
            return lesson.only(~wrong)
        return lesson.answer(torch.where(wrong.unsqueeze(-1), self._right(teacher, label), teacher))

    def _right(self, teacher: Tensor, label: Tensor) -> Tensor:
        if self.how == "swap":
            return swapped(teacher, label)
        truth = torch.full_like(teacher, -torch.inf).scatter(-1, label.unsqueeze(-1), 0.0)
        return uniform_log(truth, self.smoothing, teacher != -torch.inf)
