"""AdversarialDistill: a student that stays right when its inputs are attacked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field
from torch import nn

from decoct.artifact import Artifact
from decoct.objectives.ard import ARD
from decoct.objectives.base import Objective, as_objective
from decoct.objectives.criterion import needs_of
from decoct.outputs import Batch, Needs, Outputs
from decoct.spec import Choice
from decoct.steps.base import Context, Inputs, StepProblem
from decoct.steps.learning.lesson import Lesson, decided, lesson
from decoct.steps.learning.refusals import refuse_what_cannot_mix
from decoct.steps.learning.saving import save_student
from decoct.steps.learning.settings import Learning
from decoct.training.adversarial import Adversarial, Attacked, under_attack
from decoct.training.attacks.base import NO_CLASSES, Attack
from decoct.training.attacks.pgd import PGD

if TYPE_CHECKING:
    from decoct.tasks.answers.base import Answer


class AdversarialDistill(Learning):
    """Trains a student on inputs that are attacked anew at each step, under a teacher that sees the clean ones.

    `attack`: what is done to raw inputs, as `{use: pgd, epsilon: 8, step: 2, steps: 10}` in pixels of 0 to 255;
    `attack_loss`: it raises the loss with the "labels" (ARD) or the distance from the "teacher" (RSLAD). `objective`:
    `ard`, `rslad`, or any terms; a term with `head: adversarial` hears the answer to attacked inputs. `test_attack`:
    what the student is scored under on the validation split, as `attacked_METRIC`; `best_by`: which score selects.
    `samples`: draw the labelled training samples, or all.

    Goldblum et al. 2020, arXiv 1905.09747; Zi et al. 2021, arXiv 2108.07969.
    """

    use: ClassVar[str] = "adversarial_distill"
    rehearsed: ClassVar[bool] = False
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "model": ("spec", "model"),
        "teacher": ("model", "estimator", "exported", "spec"),
        "*": ("model", "estimator", "exported", "spec"),
    }

    objective: Annotated[Objective, Choice("decoct.objectives"), BeforeValidator(as_objective)] = ARD()
    attack: Annotated[Attack, Choice("decoct.training.attacks")] = PGD()
    attack_loss: Literal["labels", "teacher"] = "labels"
    test_attack: Annotated[Attack, Choice("decoct.training.attacks")] = Field(default=PGD())
    best_by: Literal["attacked", "clean"] = "attacked"
    samples: Literal["all", "labelled"] = "labelled"

    def problems_with(self, answer: Answer) -> Iterator[StepProblem]:
        """What suits no step that learns, and attacks on anything but classes."""
        yield from super().problems_with(answer)
        if not answer.distribution:
            yield ("attack",), f"{self.attack.use} {NO_CLASSES}", self.attack.use

    def run(self, inputs: Inputs, context: Context) -> Artifact:
        roles = [role for role in inputs if role != "model"]
        objective = decided(self, inputs, context, self.objective, roles)
        needs = needs_of(objective, roles, context.task.answer.needs)
        refuse_what_cannot_mix(self, objective, inputs, context)
        with lesson(self, inputs, context, needs) as at_work:
            student, module = self._student(at_work, needs["student"]), at_work.student.module
            criterion = at_work.criterion(objective, self._probed(student, at_work))
            optimizer = at_work.optimizer(module, criterion)
            update = Adversarial(
                student,
                at_work.teachers,
                criterion,
                optimizer,
                at_work.engine,
                max_grad_norm=self.max_grad_norm,
                lr=self.optimizer.lr,
            )
            metric, direction = context.task.metric
            history = at_work.fit(
                update,
                at_work.source(self.samples),
                self._scoring(at_work),
                select=(f"attacked_{metric}" if self.best_by == "attacked" else metric, direction),
                student=module,
                optimizer=optimizer,
                criterion=criterion,
            )
        return save_student(at_work.student, history, context)

    def _student(self, at_work: Lesson, needs: Needs) -> Attacked:
        student = at_work.student
        return Attacked(student.module, at_work.forward(needs), self.attack, student.side, self.attack_loss)

    def _probed(self, student: Attacked, at_work: Lesson) -> Callable[[Batch], Outputs]:
        """The student's two answers, from which the terms read shapes."""
        return lambda batch: student(batch, {role: teacher(batch) for role, teacher in at_work.teachers.items()})

    def _scoring(self, at_work: Lesson) -> Callable[[], dict[str, float]]:
        """Clean scores under their names, those under attack as attacked_METRIC."""
        module: nn.Module = at_work.student.module
        forward = at_work.forward(Needs())
        clean = at_work.scoring(forward)
        robust = at_work.scoring(under_attack(self.test_attack, module, forward, at_work.student.side))
        return lambda: {**clean(), **{f"attacked_{name}": value for name, value in robust().items()}}
