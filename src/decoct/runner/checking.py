"""`check`: one batch through every step's models and objectives, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from decoct.artifact import Artifact
from decoct.errors import PathError, Problem, RecipeError, ResourceError
from decoct.memory import within_memory
from decoct.models.base import KeptModel, Model
from decoct.models.exits import WithExits
from decoct.objectives.criterion import needs_of
from decoct.objectives.layers import choose_layers
from decoct.outputs import Batch, Dense, Needs, Outputs
from decoct.recipe import file as recipe_file
from decoct.recipe.graph import graph
from decoct.recipe.recipe import Recipe
from decoct.runner.execution import Options, prepare, prepare_sources
from decoct.runner.limiting import Limiting, refuse_blind_limits
from decoct.runner.shipping import refuse_what_cannot_ship, student_of, target_of
from decoct.steps.base import Context, Step
from decoct.steps.compressing.compressing import Compressing
from decoct.steps.distill import Distill
from decoct.steps.labelling.answers import label_views
from decoct.steps.labelling.step import Label
from decoct.steps.learning.batches import class_counts, few
from decoct.steps.learning.building import build_criterion, build_student, seed_everything
from decoct.steps.learning.refusals import refuse_large_batches, refuse_what_cannot_mix, stopping
from decoct.steps.learning.saving import PROBE_SAMPLES, Student
from decoct.steps.learning.settings import Learning
from decoct.steps.learning.sources import answering, at_source, read_by, refuse_other_classes, with_few
from decoct.steps.learning.teachers import alignment_of, task_of, to_combined
from decoct.steps.learning.views import STORE, views_with
from decoct.steps.self_distill import SelfDistill
from decoct.steps.shipping.export import Export
from decoct.steps.shipping.quantize import Quantize
from decoct.store.codecs.base import Codec
from decoct.store.layout import Layout
from decoct.store.reading import Store
from decoct.store.sizes import size_text
from decoct.teachers.classes import Alignment
from decoct.teachers.combining import COMBINED

if TYPE_CHECKING:
    from decoct.tasks.base import Task

ANSWERS_ALONE = ("onnx", "http", "black_box")
"""Models that answer and have no network here."""
Predict = Callable[[Batch, Needs], Outputs]


@dataclass(frozen=True)
class StandIn:
    """What a step would give, untrained: a model that answers, or a file or estimator that answers zeros.

    `store`: of a soft-label store its `views` and `labels`, as its description will hold them.
    """

    predict: Predict
    student: Student | None = None
    store: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Checked:
    """A step that passed: what was run for it."""

    step: str
    note: str


def check_file(path: Path, overrides: Sequence[str] = (), *, offline: bool = False) -> list[Checked]:
    """`check` for a recipe file; RecipeError names file, line and column."""
    marked = recipe_file.override(recipe_file.read_file(path), overrides)
    try:
        return check(Recipe.from_marked(marked), offline=offline)
    except RecipeError as error:
        if not error.problems or any(isinstance(each, recipe_file.Located) for each in error.problems):
            raise
        raise recipe_file.locate(error.problems, marked) from None


def check(recipe: Recipe, *, offline: bool = False, given: Mapping[str, Any] | None = None) -> list[Checked]:
    """Opens the data, builds every model and runs one small batch through every objective; trains and writes nothing.

    RecipeError names the setting that cannot work, `steps[2].objective: ...`; all steps are tried before it is raised.
    """
    options = Options(offline=offline, given=given or {})
    data, task = prepare(recipe, options, sure=False)
    context = Context(task=task, data=data, name="check", folder=Path(), work=Path(), seed=0, given=options.given)
    context = replace(context, sources=prepare_sources(recipe, options, sure=False))
    refuse_blind_limits(recipe.limits, context)
    if recipe.limits is not None:
        Limiting(recipe.limits, graph(recipe, [recipe.seed]), {})
    batch = few(context, PROBE_SAMPLES)
    made: dict[str, StandIn] = {}
    checked, problems = [], []
    randomness = torch.get_rng_state()
    for index, step in enumerate(recipe.steps):
        seed_everything(recipe.seed)
        try:
            with within_memory("one small batch"):
                made[step.name], note = _step(recipe, step, made, task, batch, context)
            checked.append(Checked(step.name, note))
        except RecipeError as error:
            problems += _under(error, index)
            made[step.name] = StandIn(_zeros(task))
        except ResourceError as error:
            raise ResourceError(f"steps[{index}] ({step.name}): {error}") from None
    torch.set_rng_state(randomness)
    if problems:
        raise RecipeError("\n".join(str(each) for each in problems), problems)
    return checked


def _step(
    recipe: Recipe, step: Step, made: Mapping[str, StandIn], task: Task, batch: Batch, context: Context
) -> tuple[StandIn, str]:
    inputs = {role: name for role, name in recipe.inputs_of(step).items() if role not in step.optional}
    objective = getattr(step, "objective", None)
    if isinstance(step, Compressing):
        objective = step.lesson_for([role for role in inputs if role != "model"], task.answer)
    if isinstance(step, Label):
        return _labelled(recipe, step, inputs, made, task, context)
    if isinstance(step, Export | Quantize):
        return _shipped(recipe, step, inputs["model"], made, context)
    if not isinstance(step, Learning) or objective is None or "model" not in inputs:
        first = next((made[name] for name in inputs.values() if name in made), StandIn(_zeros(task)))
        return first, "its inputs fit"
    refuse_large_batches(step, context)
    stopping(step, context)
    student = _student(recipe, step, inputs["model"], made, context)
    views_with(step, _stores(recipe, inputs, made), context)
    size = sum(each.numel() for each in student.module.parameters())
    if not step.rehearsed:
        return _answering(student, task), f"a model of {size:,} parameters"
    roles = [role for role in inputs if role != "model"]
    if isinstance(step, Distill) and step.combine is not None:
        objective, roles = to_combined(objective), [*roles, COMBINED]

    def look(role: str, needs: Needs) -> Outputs:
        if role == COMBINED:
            return _zeros(task)(batch, needs)
        found = _answering(student, task) if role == "student" else _stand_in(recipe, inputs[role], made, task, context)
        return found.predict(batch, needs)

    objective = choose_layers(objective, roles, look)
    needs = needs_of(objective, roles, task.answer.needs)
    teachers = {
        role: _bound(_stand_in(recipe, inputs[role], made, task, context).predict, needs[role])
        for role in roles
        if role != COMBINED
    }
    if COMBINED in roles:
        teachers[COMBINED] = _bound(_zeros(task), needs[COMBINED])
    teachers = {role: answering(each, needs[role].sources) for role, each in teachers.items()}
    forward = answering(student.forward(task, needs["student"]), needs["student"].sources)
    refuse_what_cannot_mix(step, objective, {}, context)
    refuse_other_classes(objective, context)
    batch = with_few(batch, context, read_by(step), PROBE_SAMPLES)
    counts = class_counts(context, step.labels)
    beside = {name: class_counts(at_source(context, name), None) for name in batch.also}
    known = _known(recipe, {role: inputs[role] for role in roles if role != COMBINED}, task)
    modules = {"student": student.module}
    criterion = build_criterion(
        objective,
        task,
        batch,
        forward,
        teachers,
        modules,
        known,
        counts=counts,
        counts_beside=beside,
        reader=student.side,
    )
    return _answering(student, task), f"{', '.join(criterion.labels)} on a model of {size:,} parameters"


def _shipped(
    recipe: Recipe, step: Export | Quantize, name: str, made: Mapping[str, StandIn], context: Context
) -> tuple[StandIn, str]:
    """What stands for a file: zeros, or the model that was made before; RecipeError where it cannot be written."""
    found = made.get(name, StandIn(_zeros(context.task)))
    student = found.student if name in made else student_of(_opened(recipe.models[name]), context)
    if student is not None:
        refuse_what_cannot_ship(student, target_of(step), context)
    return found, "its inputs fit"


def _labelled(
    recipe: Recipe, step: Label, inputs: Mapping[str, str], made: Mapping[str, StandIn], task: Task, context: Context
) -> tuple[StandIn, str]:
    """What stands for a store: its teacher, with the features and logits that it keeps; several as one say zeros."""
    found = step.estimate(context.data, task)
    note = "its inputs fit" if found is None else f"{found[0]:,} answers, about {size_text(found[1])}"
    store = {
        "views": label_views(step, context).plain(step.mix),
        "labels": step.labels if step.mix is not None else None,
    }
    answer, alignment = _zeros(task), None
    if step.combine is None:
        first, alignment = _unaligned(recipe, next(iter(inputs.values())), made, task, context)
        answer = first.predict
    stored = _stored(answer, step.codec(task), step.features, step.name)
    stored(few(context, PROBE_SAMPLES), Needs(features=frozenset(step.features)))
    return StandIn(stored if alignment is None else _aligned(stored, alignment), store=store), note


def _stored(predict: Predict, codec: Codec, features: Sequence[str], name: str) -> Predict:
    """What a store gives of what `predict` says: the logits as its codec writes and reads them."""

    def kept(batch: Batch, needs: Needs) -> Outputs:
        for path in sorted(needs.features - set(features)):
            raise PathError(
                f"feature {path!r} is wanted of the store {name!r}, which keeps "
                f"{', '.join(features) or 'none'}; add it to its features"
            )
        outputs = predict(batch, needs)
        if outputs.logits is None:
            return outputs
        plain, places = Outputs(Dense(outputs.logits), mask=outputs.mask), np.arange(len(batch))
        layout = Layout.of(plain, codec)
        written = layout.encode(plain, seen=places, keys=places, measure=False)
        back = layout.decode(written.cells, None if outputs.mask is None else outputs.mask.shape[-1])
        return replace(outputs, distribution=back.distribution)

    return kept


def _stores(recipe: Recipe, inputs: Mapping[str, str], made: Mapping[str, StandIn]) -> dict[str, Mapping[str, Any]]:
    """Of the inputs that are soft-label stores, made by a step or there already, `views` and `labels`, by role."""
    found: dict[str, Mapping[str, Any]] = {}
    for role, name in inputs.items():
        stand_in = made.get(name)
        if stand_in is not None:
            if stand_in.store is not None:
                found[role] = stand_in.store
            continue
        value = _opened(recipe.models[name])
        if isinstance(value, Artifact) and value.kind == STORE:
            found[role] = value.meta
    return found


def _student(recipe: Recipe, step: Learning, name: str, made: Mapping[str, StandIn], context: Context) -> Student:
    found = made.get(name)
    if found is not None:
        if found.student is None:
            raise RecipeError(f"inputs.model: {name!r} holds no model that can be trained")
        return found.student
    value = _opened(recipe.models[name])
    if isinstance(step, SelfDistill):
        value = WithExits(model=value, at=step.exits, pool=step.pool)
    return build_student(value, context.task, step.side, context.given)


def _known(recipe: Recipe, inputs: Mapping[str, str], task: Task) -> dict[str, tuple[int, ...]]:
    """The ids of the classes that each teacher of an earlier run knows, where it does not know all."""
    found = {}
    for role, name in inputs.items():
        alignment = alignment_of(_opened(recipe.models[name]), task, role) if name in recipe.models else None
        if alignment is not None and alignment.known is not None:
            found[role] = alignment.known
    return found


def _stand_in(recipe: Recipe, name: str, made: Mapping[str, StandIn], task: Task, context: Context) -> StandIn:
    found, alignment = _unaligned(recipe, name, made, task, context)
    return found if alignment is None else StandIn(_aligned(found.predict, alignment), found.student)


def _aligned(predict: Predict, alignment: Alignment) -> Predict:
    return lambda batch, needs: alignment(_bound(predict, needs))(batch)


def _unaligned(
    recipe: Recipe, name: str, made: Mapping[str, StandIn], task: Task, context: Context
) -> tuple[StandIn, Alignment | None]:
    """A teacher with its own classes, and how they meet the task's."""
    if name in made:
        return made[name], None
    value = _opened(recipe.models[name])
    if isinstance(value, Artifact) and value.kind == STORE:
        return StandIn(_read(value, task)), alignment_of(value, task, name)
    if (isinstance(value, Artifact) and value.kind != "model") or (
        isinstance(value, Model) and value.use in ANSWERS_ALONE
    ):
        return StandIn(_zeros(task)), None
    own = task_of(value, task)
    teacher = build_student(value, task, "teacher", context.given, answers=True)
    return _answering(teacher, own), alignment_of(value, task, name)


def _read(store: Artifact, task: Task) -> Predict:
    """A store that answers about any batch with its first samples: right in shape."""
    opened = Store.open(store.folder, verify="none")

    def predict(batch: Batch, needs: Needs) -> Outputs:
        outputs = opened.read(np.resize(opened.seen, len(batch)))
        absent = sorted(needs.features - outputs.features.keys())
        if absent:
            raise PathError(
                f"feature {absent[0]!r} is wanted of {store.folder}, which keeps {', '.join(outputs.features)}"
            )
        outputs = replace(outputs, features={path: outputs.features[path].float() for path in needs.features})
        length = task.answer.length(batch)
        return outputs if length is None or outputs.mask is None else _of_length(outputs, length)

    return predict


def _of_length(said: Outputs, length: int) -> Outputs:
    """Answers `[B, L, ...]` of other samples, cut or padded to `length` places."""

    def fitted(values: torch.Tensor) -> torch.Tensor:
        filling = values.new_zeros(len(values), length, *values.shape[2:])
        filling[:, : values.shape[1]] = values[:, :length]
        return filling

    top = said.top
    if top is not None:
        return replace(said, distribution=top.each(fitted), mask=None if said.mask is None else fitted(said.mask))
    plain = None if said.logits is None else Dense(fitted(said.logits))
    return replace(said, distribution=plain, mask=None if said.mask is None else fitted(said.mask))


def _opened(value: Model) -> Any:
    return value.open() if isinstance(value, KeptModel) else value


def _answering(student: Student, task: Task) -> StandIn:
    network = student.network(task)

    def predict(batch: Batch, needs: Needs) -> Outputs:
        student.module.eval()
        with torch.no_grad():
            return task.forward(network, batch, needs, student.side)

    return StandIn(predict, student)


def _zeros(task: Task) -> Predict:
    def predict(batch: Batch, needs: Needs) -> Outputs:
        if needs.features:
            path = sorted(needs.features)[0]
            raise PathError(f"feature {path!r} is wanted of a teacher that is a file or an estimator; it has no layers")
        return task.answer.zeros(batch)

    return predict


def _bound(predict: Predict, needs: Needs) -> Callable[[Batch], Outputs]:
    return lambda batch: predict(batch, needs)


def _under(error: RecipeError, index: int) -> list[Problem]:
    """The problems of an error as settings of a step."""
    if error.problems:
        return [Problem(("steps", index, *each.path), each.message) for each in error.problems]
    return [Problem(("steps", index), str(error))]
