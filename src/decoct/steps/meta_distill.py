"""MetaDistill: a student whose objective is tuned by held-out samples while it learns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field
from torch import nn

from decoct.artifact import Artifact
from decoct.data.base import Source, Split
from decoct.data.hashing import keyed
from decoct.data.sources import HELD_OUT, Batches, Together
from decoct.data.splits import keep_labels
from decoct.errors import DataError, RecipeError
from decoct.objectives.base import Objective, Sum, as_objective
from decoct.objectives.criterion import Criterion, needs_of
from decoct.objectives.ctkd import CTKD, CTKDTerm
from decoct.objectives.kd import KD
from decoct.objectives.task_loss import TaskLoss
from decoct.outputs import DENSE, Batch, Needs, Outputs
from decoct.spec import Choice
from decoct.steps.base import Context, Inputs
from decoct.steps.learning.batches import splits_of, training_source
from decoct.steps.learning.lesson import Lesson, decided, lesson
from decoct.steps.learning.saving import save_student
from decoct.steps.learning.settings import Learning
from decoct.training.meta import Answering, Meta, Multipliers
from decoct.training.optimizers import AdamW, Optimizer


class MetaDistill(Learning):
    """Distils with weights, and perhaps a temperature, learned from held-out samples by looking one step ahead.

    `tune`: the "weights" of the terms (a factor on each, 1 at first), the "temperature" of ctkd terms (whose reversal
    is then of no account), or both. `held_out`: the share of the labelled training samples, drawn by key, whose labels
    judge and do not train. `meta_optimizer` follows the gradient of their loss. About three times the cost of distill.
    `objective`: the terms whose weights are learned. `held_out_batch`: held-out samples a step. `samples`: draw all
    training samples or the labelled ones.
    """

    use: ClassVar[str] = "meta_distill"
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "model": ("spec", "model"),
        "teacher": ("model", "estimator", "exported", "spec"),
        "*": ("model", "estimator", "exported", "spec"),
    }

    objective: Annotated[Objective, Choice("decoct.objectives"), BeforeValidator(as_objective)] = (
        0.5 * KD(temperature=4.0) + 0.5 * TaskLoss()
    )
    tune: tuple[Literal["weights", "temperature"], ...] = Field(default=("weights",), min_length=1)
    held_out: float = Field(default=0.2, gt=0, lt=1)
    held_out_batch: int = Field(default=64, ge=1, le=1 << 24)
    meta_optimizer: Annotated[Optimizer, Choice("decoct.training.optimizers")] = AdamW(lr=0.01, weight_decay=0.0)
    samples: Literal["all", "labelled"] = "all"

    def run(self, inputs: Inputs, context: Context) -> Artifact:
        if self.mix is not None or self.teacher_views > 1:
            raise RecipeError("meta_distill draws its own batches; leave mix and teacher_views out")
        roles = [role for role in inputs if role != "model"]
        objective = decided(self, inputs, context, self._objective(), roles)
        needs = needs_of(objective, roles, context.task.answer.needs)
        needs["student"] |= DENSE  # its loss is differentiated twice
        source = self._source(context)
        with lesson(self, inputs, context, needs) as at_work:
            criterion = at_work.criterion(objective, at_work.forward(needs["student"]))
            multipliers = Multipliers(criterion.labels, learned="weights" in self.tune).to(at_work.engine.device)
            update = self._update(at_work, criterion, multipliers, needs["student"])
            history = at_work.fit(
                update,
                source,
                student=at_work.student.module,
                criterion=criterion,
                multipliers=multipliers,
                optimizer=update.optimizer,
                meta_optimizer=update.meta_optimizer,
            )
        return save_student(at_work.student, history, context)

    def _objective(self) -> Objective:
        """The objective, in which a temperature that is tuned descends the held-out loss."""
        if "temperature" not in self.tune:
            return self.objective
        terms = tuple(e.replace(reversal=-1.0) if isinstance(e, CTKD) else e for e in self.objective.flat())
        if not any(isinstance(each, CTKD) for each in terms):
            raise RecipeError("tune names temperature, and no term learns one; use ctkd in the place of kd")
        return Sum(terms=terms)

    def _update(self, at_work: Lesson, criterion: Criterion, multipliers: Multipliers, needs: Needs) -> Meta:
        task, student = at_work.context.task, at_work.student
        network = student.network(task)
        tuned = [each for term in criterion.terms if isinstance(term, CTKDTerm) for each in term.parameters()]
        tuned = tuned if "temperature" in self.tune else []
        others = [each for each in criterion.parameters() if all(each is not one for one in tuned)]

        def answer(model: nn.Module, batch: Batch) -> Outputs:
            return task.forward(replace(network, module=model), batch, needs, student.side)

        return Meta(
            Answering(student.module, answer),
            at_work.teachers,
            criterion,
            multipliers,
            task.answer.loss,
            self.optimizer.build([*student.module.parameters(), *others]),
            self.meta_optimizer.build([*multipliers.parameters(), *tuned]),
            at_work.engine,
            max_grad_norm=self.max_grad_norm,
            lr=self.optimizer.lr,
        )

    def _source(self, context: Context) -> Source:
        """Training batches with held-out ones beside them."""
        train = splits_of(context).get("train")
        if not isinstance(train, Split):
            raise RecipeError("meta_distill holds samples out by key; it needs a data set that decoct reads")
        train = train if self.labels is None else keep_labels(train, self.labels)
        labelled = np.ones(len(train), bool) if train.labelled is None else train.labelled
        known = np.flatnonzero(labelled)
        order = known[np.argsort(keyed(context.seed, "held out", train.keys[known]), kind="stable")]
        chosen = order[: round(self.held_out * len(known))]
        if not 0 < len(chosen) < len(known):
            raise DataError(
                f"held_out is {self.held_out} of {len(known)} labelled training samples; it leaves none on one side"
            )
        rest = labelled.copy()
        rest[chosen] = False
        splits = {**context.data.splits, "train": replace(train, labelled=rest)}
        main = training_source(
            replace(context, data=replace(context.data, splits=splits)),
            batch_size=self.batch_size,
            augment=self.augment,
            only=self.samples,
            labels=None,
        )
        judges = replace(train.take(chosen), labelled=None)
        size = min(self.held_out_batch, len(chosen))
        beside = Batches(judges, context.collate, batch_size=size, seed=context.seed)
        return Together(main, {HELD_OUT: beside})
