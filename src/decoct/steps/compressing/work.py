"""What recoveries are made of: compress, learn, let the scheme accompany the learning, save with a report."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from decoct.artifact import MANIFEST, Artifact, Draft, writing
from decoct.errors import RecipeError
from decoct.meters.macs import macs
from decoct.meters.parameters import parameters
from decoct.models.modes import evaluating
from decoct.models.own_inputs import copy_of
from decoct.models.rewrites import rewritten
from decoct.objectives.base import Objective
from decoct.objectives.criterion import needs_of
from decoct.outputs import Batch, Needs
from decoct.steps.base import Context, Inputs
from decoct.steps.learning.lesson import Begun, Lesson, decided, learn, lesson
from decoct.steps.learning.saving import save_student
from decoct.steps.records import REPORT, Report
from decoct.training.callback import Callback
from decoct.training.clock import Clock
from decoct.training.compression import Change, Evidence

if TYPE_CHECKING:
    from decoct.steps.compressing.compressing import Compressing


EVIDENCE_BATCHES = 8
"""Training batches from which scores with gradients, and statistics of layers, are taken."""


def compress(step: Compressing, inputs: Inputs, context: Context) -> Artifact:
    """The scheme at once, without training."""
    objective, needs = settled(step, inputs, context)
    with lesson(step, inputs, context, needs, kinds=step.teachers) as at_work:
        begun, _ = cut(step, at_work, objective)
    return save_student(begun.lesson.student, None, context, scores={}, extra=begun.extra)


def settled(step: Compressing, inputs: Inputs, context: Context) -> tuple[Objective, dict[str, Needs]]:
    """The step's objective with its layers chosen, and what of each model must be captured for its losses."""
    roles = [role for role in inputs if role != "model"]
    objective = decided(step, inputs, context, step.lesson_for(roles, context.task.answer), roles, kinds=step.teachers)
    return objective, needs_of(objective, roles, context.task.answer.needs)


def compress_and_learn(step: Compressing, inputs: Inputs, context: Context) -> Artifact:
    """The scheme at once, then the step's objective for its budget."""
    return _learn(step, inputs, context, lambda at_work, objective: cut(step, at_work, objective)[0])


def learn_with_callback(step: Compressing, inputs: Inputs, context: Context, *, until: float) -> Artifact:
    """The step's objective for its budget while the scheme works on the weights, done at progress `until`."""

    def begin(at_work: Lesson, objective: Objective) -> Begun:
        evidence = evidence_of(at_work, objective)
        module = at_work.student.module
        before = copy.deepcopy(module)
        callback = step.scheme.callback(module, evidence, until)

        def extra(draft: Draft) -> None:
            reporting(step, at_work, step.scheme.changes(module), (before, module))(draft)

        return Begun(at_work, callback, extra)

    return _learn(step, inputs, context, begin)


def learn_on(step: Compressing, inputs: Inputs, context: Context, extra: Callable[[Draft], None]) -> Artifact:
    """The step's objective for its budget on a student that is compressed already; masks are held meanwhile.

    `extra` writes the report of how it was compressed.
    """
    return _learn(step, inputs, context, lambda at_work, objective: Begun(at_work, held(step, at_work), extra))


def held(step: Compressing, at_work: Lesson) -> Callback | None:
    """What keeps a compressed student as it is while it learns."""
    return step.scheme.hold(at_work.student.module)


def cut(step: Compressing, at_work: Lesson, objective: Objective) -> tuple[Begun, tuple[Change, ...]]:
    """The lesson with the compressed student in place of the given one, and what became of its layers."""
    before = at_work.student.module
    found = step.scheme.apply(before, evidence_of(at_work, objective))
    found.module.train(before.training)
    after = replace(at_work, student=replace(at_work.student, module=found.module.to(at_work.engine.device)))
    extra = reporting(step, at_work, found.changes, (before, found.module))
    return Begun(after, held(step, after), extra), found.changes


def evidence_of(at_work: Lesson, objective: Objective) -> Evidence:
    """What a scheme may see of this lesson: a few samples, and losses under its objective, on training data."""
    if rewritten(at_work.student.module) is not None:
        raise RecipeError(
            f"{at_work.step.name}: the model has quantizers inside already; put this step before qat, or train the "
            "model further with train or distill"
        )
    args, kwargs = taken_by(at_work.student.module, at_work)
    only: Literal["all", "labelled"] = "all" if at_work.teachers else "labelled"

    def batches() -> Iterator[Batch]:
        for batch in islice(iter(at_work.whole(only)), EVIDENCE_BATCHES):
            yield at_work.engine.move(batch)

    def losses(module: nn.Module) -> Iterator[Tensor]:
        seen = replace(at_work, student=replace(at_work.student, module=module))
        forward = seen.forward(
            needs_of(objective, list(at_work.teachers), at_work.context.task.answer.needs)["student"]
        )
        criterion = seen.criterion(objective, forward)
        for batch in batches():
            teacher_outputs = {role: teacher(batch) for role, teacher in at_work.teachers.items()}
            yield criterion(forward(batch), teacher_outputs, batch, Clock())[0]

    def passes(module: nn.Module) -> None:
        forward = replace(at_work, student=replace(at_work.student, module=module)).forward(Needs())
        with torch.no_grad():
            for batch in batches():
                forward(batch)

    return Evidence(args, kwargs, losses, passes)


def taken_by(module: nn.Module, at_work: Lesson) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments that the task gives a module for the lesson's few samples."""
    spy = _Spy(module)
    with evaluating(module), torch.no_grad():
        replace(at_work.student, module=spy).forward(at_work.context.task, Needs())(at_work.batch)
    return spy.args, spy.kwargs


class _Spy(nn.Module):
    """A module that remembers what it took."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.args, self.kwargs = copy_of(args), copy_of(kwargs)  # the module may write into them
        return self.module(*args, **kwargs)


def _learn(
    step: Compressing, inputs: Inputs, context: Context, begin: Callable[[Lesson, Objective], Begun]
) -> Artifact:
    roles = [role for role in inputs if role != "model"]
    objective = step.lesson_for(roles, context.task.answer)
    only = step.samples if roles else "labelled"
    return learn(step, inputs, context, objective, only, step.teachers, begin=begin)


def reporting(
    step: Compressing, at_work: Lesson, changes: Sequence[Change], modules: tuple[nn.Module, nn.Module]
) -> Callable[[Draft], None]:
    """What writes compression.json: the scheme, what became of each layer, parameters and MACs before and after."""
    facts = [_facts(module, at_work) for module in modules]
    record = {
        **_made_by(step),
        "before": facts[0],
        "after": facts[1],
        "changes": [each.data() for each in changes],
    }
    return lambda draft: draft.write_json(REPORT, record)


def _made_by(step: Compressing) -> dict[str, Any]:
    return {"step": step.use, "scheme": step.scheme.plain(), "recover": step.recover.plain()}


def _facts(module: nn.Module, at_work: Lesson) -> dict[str, Any]:
    reading = at_work.context.task.reading(at_work.student.side)
    program = reading.program(module)
    device = next((each.device for each in module.parameters()), torch.device("cpu"))
    example = {name: value.to(device) for name, value in reading.example(1).items()}
    count = parameters(module)
    return {
        "parameters": count.total,
        "nonzero": count.nonzero,
        "macs": macs(program, example).total,
    }


def _blocks_over(rounds: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What became of the blocks of the first round: those that are left get new paths in each round, in order."""
    found = {each["path"]: each for each in rounds[0]}
    left = list(found)
    for changes in rounds:
        assert len(changes) == len(left)
        found |= {path: {**each, "path": path} for path, each in zip(left, changes)}
        left = [path for path in left if found[path]["after"]]
    return list(found.values())


def save_last(made: Sequence[Artifact], step: Compressing, context: Context) -> Artifact:
    """The last of several rounds as the step's own artifact, with a report of the whole way."""
    reports = [each.json(REPORT, Report) for each in made]
    first = {(each["path"], each["kind"]): each for each in reversed([c for r in reports for c in r["changes"]])}
    last = {(each["path"], each["kind"]): each for report in reports for each in report["changes"]}
    merged = [{**each, "before": first[key]["before"]} for key, each in last.items() if each["kind"] != "layers"]
    merged += _blocks_over([[each for each in r["changes"] if each["kind"] == "layers"] for r in reports])
    record = {
        **_made_by(step),
        "before": reports[0]["before"],
        "after": reports[-1]["after"],
        "changes": merged,
        "rounds": [{"after": each["after"], "scores": dict(made_.scores)} for each, made_ in zip(reports, made)],
    }
    end = made[-1]

    def write() -> Artifact:
        with writing(
            context.folder, kind="model", name=context.name, key=context.key, lineage=context.lineage, meta=end.meta
        ) as draft:
            ignored = shutil.ignore_patterns(MANIFEST, REPORT)
            shutil.copytree(end.folder, draft.folder, dirs_exist_ok=True, ignore=ignored)
            draft.write_json(REPORT, record)
            draft.scores.update(end.scores)
        return Artifact.load(context.folder)

    return context.written(write)
