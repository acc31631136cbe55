"""SelfDistill: a network with early exits, which learn from its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field
from torch import nn

from decoct.artifact import Artifact
from decoct.models.base import Model, OutsideModel
from decoct.models.exits import ExitNet, WithExits
from decoct.objectives.base import Objective, as_objective
from decoct.objectives.criterion import Criterion
from decoct.objectives.kd import KD
from decoct.objectives.task_loss import TaskLoss
from decoct.outputs import Batch, Needs, Outputs
from decoct.spec import Choice
from decoct.steps.base import Context, Inputs
from decoct.steps.learning.building import build_criterion
from decoct.steps.learning.lesson import Lesson, lesson
from decoct.steps.learning.saving import save_student
from decoct.steps.learning.settings import Learning
from decoct.training.exits import END, Exits, at_exit


class SelfDistill(Learning):
    """Trains a network with early exits that learn from the labels and from its own end.

    `exits`: module paths in the order in which they run; each gets a linear head, on maps over `pool` positions a side.
    `objective`: what each exit learns, with the end as its teacher; `end`: what the end learns, without a teacher;
    `samples` as in distill. The losses of all are added. Scores of an exit stand beside those of the end, as
    EXIT.METRIC. `choose_exit` makes a model that answers at an exit, or as soon as it is sure.

    Zhang et al. 2019, arXiv 1905.08094, without their bottlenecks and feature hint.
    """

    use: ClassVar[str] = "self_distill"
    rehearsed: ClassVar[bool] = False
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": ("spec",)}

    exits: tuple[str, ...] = Field(min_length=1)
    pool: int = Field(default=1, ge=1, le=1024)
    objective: Annotated[Objective, Choice("decoct.objectives"), BeforeValidator(as_objective)] = (
        0.7 * TaskLoss() + 0.3 * KD(temperature=3.0)
    )
    end: Annotated[Objective, Choice("decoct.objectives"), BeforeValidator(as_objective)] = TaskLoss()
    samples: Literal["all", "labelled"] = "all"

    def run(self, inputs: Inputs, context: Context) -> Artifact:
        given = {"model": WithExits(model=inputs["model"], at=self.exits, pool=self.pool)}
        with lesson(self, given, context, {"student": Needs()}) as at_work:
            heads = {path: f"heads.{number}" for number, path in enumerate(self.exits)}
            needs = Needs(frozenset(heads.values())) | self.end.needs().get("student", Needs())
            forward = at_work.forward(needs)
            end = at_work.criterion(self.end, forward)
            criteria = {path: self._criterion(at_work, forward, head) for path, head in heads.items()}
            learned = nn.ModuleList([end, *criteria.values()])
            optimizer = at_work.optimizer(at_work.student.module, learned)
            update = Exits(
                forward,
                heads,
                end,
                criteria,
                optimizer,
                at_work.engine,
                max_grad_norm=self.max_grad_norm,
                lr=self.optimizer.lr,
            )
            history = at_work.fit(
                update,
                at_work.source(self.samples),
                self._scoring(at_work),
                student=at_work.student.module,
                optimizer=optimizer,
                criterion=learned,
            )
        spec = WithExits(model=_standalone(inputs["model"], context), at=self.exits, pool=self.pool)
        return save_student(replace(at_work.student, spec=spec), history, context)

    def _criterion(self, at_work: Lesson, forward: Callable[[Batch], Outputs], head: str) -> Criterion:
        """The criterion of one exit."""
        own = lambda batch: at_exit(forward(batch), head)  # noqa: E731
        modules = {"student": at_work.student.module}
        task = at_work.context.task
        built = build_criterion(
            self.objective, task, at_work.batch, own, {END: forward}, modules, reader=at_work.student.side
        )
        return built.to(at_work.engine.device)

    def _scoring(self, at_work: Lesson) -> Callable[[], dict[str, float]]:
        """Scores of the end under their names, those of an exit as EXIT.METRIC."""
        score = at_work.scoring(at_work.forward(Needs()))
        net = at_work.student.module
        assert isinstance(net, ExitNet)

        def scores() -> dict[str, float]:
            found = dict(score())
            try:
                for path in self.exits:
                    net.exit = path
                    found |= {f"{path}.{metric}": value for metric, value in score().items()}
            finally:
                net.exit = None
            return found

        return scores


def _standalone(spec: Model, context: Context) -> Model:
    interface = context.task.reading("student").interface
    return spec.standalone(interface) if isinstance(spec, OutsideModel) else spec
