"""Lesson, what training and distilling share: build, draw, descend, select, save."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import nn

from decoct.artifact import Artifact, Draft
from decoct.capture import EVERY
from decoct.data.base import Source
from decoct.data.parts import parts
from decoct.data.sources import Together
from decoct.data.views import Views
from decoct.errors import RecipeError
from decoct.models.modes import evaluating
from decoct.objectives.base import Objective
from decoct.objectives.criterion import Criterion, needs_of
from decoct.objectives.layers import choose_layers, layers_text, undecided_roles
from decoct.outputs import DENSE, Batch, Needs, Outputs, Predictor
from decoct.steps.base import Context, Inputs
from decoct.steps.learning.batches import class_counts, has_split, scores, training_source
from decoct.steps.learning.building import build_criterion, build_student, seed_everything
from decoct.steps.learning.memorised import warn_of_memorised
from decoct.steps.learning.refusals import observed, refuse_large_batches, refuse_what_cannot_mix, stopping
from decoct.steps.learning.saving import PROBE_SAMPLES, Student, save_student
from decoct.steps.learning.settings import Learning
from decoct.steps.learning.sources import answering, at_source, refuse_other_classes, with_few
from decoct.steps.learning.teachers import open_teachers, own_readers, to_combined
from decoct.steps.learning.top_k import warn_of_tails
from decoct.steps.learning.views import probe_batch, refuse_absent, teaching_stores, views_of
from decoct.steps.learning.work import Work
from decoct.teachers.base import Teacher
from decoct.teachers.combining import COMBINED, Combination, compared
from decoct.teachers.remote.base import Ahead
from decoct.teachers.remote.running_ahead import RunsAhead
from decoct.threads import SMALL, in_threads, is_ours
from decoct.training.callback import CHOSEN, Callback, WithCallback, once_ready
from decoct.training.fit import History, Options, Update, fit
from decoct.training.processes import refusing_other_batches
from decoct.training.sharding import Sharded, ShardedOptimizer
from decoct.training.state import State, Stateful
from decoct.training.updates import Descent, Engine, Measure


@dataclass(frozen=True)
class Lesson:
    """A step at work: its engine, the student, and the predictors that it listens to, by role.

    `known`: by role the ids of the classes that a teacher knows, where it does not know all; `batch` a few samples, on
    the device, from which shapes are read, with those of each further source that is read beside them; `views` those
    that samples are drawn in, where they are fixed; `ahead` the teachers that are asked before the student gets to a
    batch, and about which sources beside the main one; `stores` the soft-label stores among the inputs.
    """

    step: Learning
    context: Context
    engine: Engine
    student: Student
    teachers: Mapping[str, Predictor]
    known: Mapping[str, tuple[int, ...]]
    batch: Batch
    views: Views | None = None
    ahead: Mapping[Ahead, frozenset[str]] = field(default_factory=dict)
    stores: Mapping[str, Artifact] = field(default_factory=dict)

    def forward(self, needs: Needs) -> Callable[[Batch], Outputs]:
        """The student as it is now, on the batches of the sources that it needs too.

        Written out where teachers of other classes, or the log, read its logits.
        """
        if self.known or self.measure() is not None:
            needs |= DENSE
        return answering(self.student.forward(self.context.task, needs), needs.sources, self.engine.whole_batch)

    def look(self, role: str, needs: Needs) -> Outputs:
        """What the student in eval mode, or a teacher as it was opened, says about the few samples."""
        if role != "student":
            return self.teachers[role](self.batch)
        with evaluating(self.student.module), torch.no_grad():
            return self.student.forward(self.context.task, needs)(self.batch)

    def criterion(
        self, objective: Objective, forward: Callable[[Batch], Outputs], teachers: Mapping[str, Predictor] | None = None
    ) -> Criterion:
        """The criterion between a student's predictor and `teachers` (by default the lesson's)."""
        opened = self.teachers if teachers is None else teachers
        modules = {"student": self.student.module}
        built = build_criterion(
            objective,
            self.context.task,
            self.batch,
            forward,
            opened,
            modules,
            self.known,
            counts=class_counts(self.context, self.step.labels),
            reader=self.student.side,
            counts_beside={name: class_counts(at_source(self.context, name), None) for name in self.batch.also},
        )
        return built.to(self.engine.device)

    def optimizer(self, *parts: nn.Module) -> torch.optim.Optimizer:
        """The step's optimizer over the parameters of `parts`."""
        return self.step.optimizer.build(nn.ModuleList(parts))

    def source(self, only: Literal["all", "labelled"]) -> Source:
        """Batches of the training split; of each, in several processes, the part of this one."""
        engine = self.engine
        source = parts(self.whole(only), engine.rank, engine.processes, refusing_other_batches(engine.group))
        return RunsAhead(source, tuple(self.ahead), beside=self.ahead) if self.ahead else source

    def whole(self, only: Literal["all", "labelled"]) -> Source:
        """Batches of the training split, the same in all processes; DataError where a store lacks some of them.

        Beside each the next one, of labelled samples and others, of every further source that is read.
        """
        step = self.step
        if only == "all":  # the labelled ones were looked for when the lesson began
            refuse_absent(self.stores, step, self.context, self.views, only)
        main = self._drawn(self.context, only, step.labels)
        others = {name: self._drawn(at_source(self.context, name), "all", None) for name in self.batch.also}
        return Together(main, others) if others else main

    def _drawn(self, context: Context, only: Literal["all", "labelled"], labels: int | None) -> Source:
        step = self.step
        return training_source(
            context,
            batch_size=step.batch_size,
            augment=step.augment,
            only=only,
            labels=labels,
            mix=step.mix,
            further=step.teacher_views,
            views=self.views,
        )

    def descent(
        self,
        forward: Callable[[Batch], Outputs],
        criterion: Criterion,
        optimizer: torch.optim.Optimizer,
        teachers: Mapping[str, Predictor] | None = None,
    ) -> Descent:
        """The usual update: one student under its teachers."""
        return Descent(
            forward,
            self.teachers if teachers is None else teachers,
            criterion,
            optimizer,
            self.engine,
            max_grad_norm=self.step.max_grad_norm,
            lr=self.step.optimizer.lr,
            measure=self.measure(),
        )

    def measure(self) -> Measure | None:
        """What is logged beside the terms where there are several teachers: who agrees with whom, and their weights."""
        roles = [role for role in self.teachers if role != COMBINED]
        if len(roles) < 2 or not self.context.task.answer.distribution:
            return None
        task, reader, known = self.context.task, self.student.side, self.known
        return lambda student, teacher_outputs, batch: compared(
            student, teacher_outputs, known, task.answer.kept(batch, "items", reader)
        )

    def fit(
        self,
        update: Update,
        source: Source,
        validate: Callable[[], dict[str, float]] | None = None,
        select: tuple[str, Literal["max", "min"]] | None = None,
        **parts: Stateful,
    ) -> History:
        """Runs the step's budget; `parts` is what the checkpoint holds beside the source.

        `validate` is by default the student's score on the validation split, where there is one; `select` the score by
        which the best weights are kept, by default the task's main one.
        """
        step, context = self.step, self.context
        if step.sharding == "fsdp" and context.processes.several and not self.engine.sharded:
            raise RecipeError(
                f"{step.name}: sharding is fsdp, which is for steps that train one model without a scheme at work; "
                "leave it out"
            )
        held_out = has_split(context, "validation")
        if step.select == "best" and not held_out:
            warnings.warn(
                f"{step.name}: select is best and the data have no validation split, so the last weights are kept; "
                f"give data.validation a fraction above 0 (or a validation loader), or say select: last",
                stacklevel=2,
            )
        state = State(**parts, source=source)
        modules = state.modules()
        criteria = [each for part in modules for each in part.modules() if isinstance(each, Criterion)]
        layers = [pair for each in criteria for pair in each.layers()]
        if layers:
            context.progress(0, 1, layers_text(layers))
        self.engine.prepare(modules)
        options = Options(
            accumulate=step.accumulate,
            select=(select or context.task.metric) if step.select == "best" and held_out else None,
            log_every=step.log_every,
            checkpoint_seconds=step.checkpoint_seconds,
            progress=context.progress if context.processes.first else None,
            processes=context.processes,
            notes=({"kind": "layers", "pairs": layers},) if layers else (),
            metric=context.task.metric[0],
            stop=stopping(step, context),
            watch=context.watch,
        )
        scoring = (validate or self.scoring(self.forward(Needs()))) if held_out else None
        with in_threads(self.threads()):
            return fit(
                update,
                source,
                state,
                step.budget,
                work=context.work,
                validate=observed(scoring, parts.values()),
                options=options,
            )

    def threads(self) -> int | None:
        """1 where the command chose several and a batch of the step is too small for them; None: as many as there are.

        By the work of a batch alone, so that one machine trains with one number of threads again and again.
        """
        if self.engine.device.type != "cpu" or self.engine.sharded or not is_ours():
            return None
        with Work() as student:
            self.look("student", Needs())
        with Work() as teachers, torch.no_grad():
            for role in self.teachers:
                self.look(role, Needs())
        batch = (3 * student.macs + teachers.macs) * self.step.batch_size // len(self.batch)
        return 1 if batch < SMALL else None

    def scoring(self, predict: Predictor) -> Callable[[], dict[str, float]]:
        """Scores of a predictor on the validation split; of several processes, the first one scores for all."""

        def score() -> dict[str, float]:
            with self.engine.autocast():
                found = scores(predict, self.context, "validation", self.engine.device)
            return {name: float(each) for name, each in found.items()}

        def score_in_all() -> dict[str, float]:
            own = score()
            return self.context.processes.shared(lambda: own)

        sharded = self.engine.sharded  # then the forward pass is a matter of all processes
        return score_in_all if sharded else lambda: self.context.processes.shared(score)


@dataclass(frozen=True)
class Begun:
    """A lesson with another student than it was opened with, what accompanies its training, and what goes into the
    artifact beside it."""

    lesson: Lesson
    callback: Callback | None = None
    extra: Callable[[Draft], None] = lambda draft: None


@contextlib.contextmanager
def lesson(
    step: Learning,
    inputs: Inputs,
    context: Context,
    needs: Mapping[str, Needs],
    *,
    kinds: Mapping[str, Teacher] | None = None,
    combine: Combination | None = None,
    looked_at: bool = True,
) -> Iterator[Lesson]:
    """Seeds, builds the student, and opens every input of `needs` but "student" as a teacher while the body runs.

    `kinds`: how a teacher answers, by role, where it is not what suits its artifact; `combine`: how all of them answer
    as one, under the role "combined"; `looked_at`: whether a teacher that memorised is warned of.
    """
    context = replace(context, readers=own_readers(inputs, context.task))
    task = context.task
    if step.labels is not None and task.answer.scaled:
        raise RecipeError(
            f"labels is {step.labels} and the task is regression, whose scale comes from every labelled sample of the "
            f"data; leave it out of the step and give data.labels: {step.labels}"
        )
    stores = {role: each for role, each in teaching_stores(inputs).items() if role in needs}
    engine = Engine(context.device, step.precision or context.precision, context.processes)
    seed_everything(context.seed)
    student = build_student(inputs["model"], task, step.side, context.given)
    student.module.to(engine.device)
    views = views_of(step, inputs, context)
    refuse_absent(stores, step, context, views, "labelled")
    wanted = {role: each for role, each in needs.items() if role not in ("student", COMBINED)}
    with open_teachers(
        inputs,
        wanted,
        context,
        engine,
        kinds=kinds,
        combine=combine,
        labels=step.labels,
        averaged=step.teacher_views > 1,
    ) as found:
        names = frozenset[str]().union(*(each.sources for each in needs.values()))
        batch = with_few(probe_batch(step, context, PROBE_SAMPLES, views), context, names, PROBE_SAMPLES)
        batch = batch.to(engine.device)
        if looked_at and step.teacher_views == 1:
            warn_of_memorised(inputs, found.teachers, context, engine)
        teachers = {role: answering(each, needs[role].sources) for role, each in found.teachers.items()}
        yield Lesson(step, context, engine, student, teachers, found.known, batch, views, found.ahead, stores)


def learn(
    step: Learning,
    inputs: Inputs,
    context: Context,
    objective: Objective,
    only: Literal["all", "labelled"],
    kinds: Mapping[str, Teacher] | None = None,
    combine: Combination | None = None,
    *,
    begin: Callable[[Lesson, Objective], Begun] = lambda at_work, objective: Begun(at_work),
) -> Artifact:
    """Trains the input "model" on `objective`, listening to all other inputs as teachers; saves the artifact.

    `begin` may change the student first, and let a callback work while it trains.
    """
    refuse_large_batches(step, context)
    roles = [role for role in inputs if role != "model"]
    if combine is not None:
        objective, roles = to_combined(objective), [*roles, COMBINED]
    objective = decided(step, inputs, context, objective, roles, kinds=kinds)
    needs = needs_of(objective, roles, context.task.answer.needs)
    if COMBINED in needs and needs[COMBINED].features:
        raise RecipeError(
            "objective: a term on features listens to the combination, which has none; name its `teacher`: "
            + ", ".join(role for role in roles if role != COMBINED)
        )
    refuse_what_cannot_mix(step, objective, inputs, context)
    refuse_other_classes(objective, context)
    with lesson(step, inputs, context, needs, kinds=kinds, combine=combine) as opened:
        begun = begin(opened, objective)
        at_work = begun.lesson
        warn_of_tails(objective, inputs, at_work.teachers, at_work.batch)
        forward = at_work.forward(needs["student"])
        criterion = at_work.criterion(objective, forward)
        source = at_work.source(only)
        whole = None if begun.callback is not None else shard_student(at_work)
        optimizer = at_work.optimizer(at_work.student.module, criterion)
        update: Update = at_work.descent(forward, criterion, optimizer)
        validate, select = None, None
        if begun.callback is not None:
            update = WithCallback(at_work.descent(forward, criterion, optimizer), begun.callback, optimizer)
            validate = once_ready(at_work.scoring(forward), begun.callback, context.task.metric[0])
            select = (CHOSEN, context.task.metric[1])
        student = at_work.student
        state: dict[str, Stateful] = {"student": student.module, "optimizer": optimizer}
        if whole is not None:
            both = nn.ModuleDict({"student": student.module, "criterion": criterion})
            state = {"student": Sharded(student.module), "optimizer": ShardedOptimizer(optimizer, both)}
        history = at_work.fit(update, source, validate, select, **state, criterion=criterion)
        if whole is not None:
            student = gathered(student, whole, context)
    return save_student(student, history, context, extra=begun.extra)


def shard_student(at_work: Lesson) -> nn.Module | None:
    """Shards the student where its step says so and there are several processes; a whole copy, to be saved later."""
    if at_work.step.sharding == "none" or not at_work.context.processes.several:
        return None
    whole = copy.deepcopy(at_work.student.module).cpu()
    at_work.engine.shard(at_work.student.module)
    return whole


def gathered(student: Student, whole: nn.Module, context: Context) -> Student:
    """The student with the weights of its shards put together, which the first process has."""
    weights = Sharded(student.module).state_dict()
    if context.processes.first:
        whole.load_state_dict(weights)
    return replace(student, module=whole)


def decided(
    step: Learning,
    inputs: Inputs,
    context: Context,
    objective: Objective,
    roles: Sequence[str],
    *,
    kinds: Mapping[str, Teacher] | None = None,
    alike: Sequence[str] = (),
) -> Objective:
    """The objective with every `layers: auto` chosen; `alike` are roles whose models are built as the student is."""
    open_roles = undecided_roles(objective, roles)
    if not open_roles:
        return objective
    every = Needs(features=frozenset({EVERY})) | DENSE
    opened = {"student", *open_roles} - set(alike)
    with lesson(step, inputs, context, dict.fromkeys(sorted(opened), every), kinds=kinds, looked_at=False) as seen:
        return choose_layers(
            objective, roles, lambda role, needs: seen.look("student" if role in alike else role, needs)
        )
