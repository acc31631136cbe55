"""The task's own supervised loss as a term."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from decoct.objectives._sweep import Hard, Rows, alone
from decoct.objectives.base import Objective, Probe, Term
from decoct.outputs import Batch, Factored, Needs, Outputs
from decoct.tasks.answers.base import IGNORED
from decoct.tasks.base import Task
from decoct.training.clock import Clock


class TaskLoss(Objective):
    """The task's own supervised loss; unlabelled samples do not count.

    Classification: cross-entropy. Regression: what the task says. The mean is over the task's labelled items.
    """

    use: ClassVar[str] = "task_loss"
    taught: ClassVar[bool] = False
    supervised: ClassVar[bool] = True
    mixed: ClassVar[bool] = True
    asks_task: ClassVar[bool] = True

    def needs(self) -> Mapping[str, Needs]:
        """Logits written out or factored; in the latter a task whose loss is no cross-entropy writes them out."""
        return {"student": Needs(forms=frozenset(("dense", "factored")))}

    def build(self, probe: Probe) -> Term:
        return TaskLossTerm(probe.task)


class TaskLossTerm(Term):
    """Asks the task, which leaves unlabelled samples out by itself."""

    selection = "own"

    def __init__(self, task: Task) -> None:
        super().__init__()
        self._task = task

    def forward(self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock) -> Tensor:
        rows = self.rows(student, teachers, batch, clock)
        return self._task.answer.loss(student, batch) if rows is None else alone(rows)

    def rows(self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock) -> Rows | None:
        outputs = student.distribution
        target = self._task.answer.hard_target(batch) if isinstance(outputs, Factored) else None
        if target is None or not isinstance(outputs, Factored):
            return None
        return Rows(TaskLoss.use, outputs, Hard(), target != IGNORED, target=target)

    def items(self, batch: Batch) -> Tensor | int:
        return self._task.answer.items(batch)
