"""Opening teachers: what suits an artifact, and the classes that it knows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from decoct.artifact import Artifact, Described, described_by
from decoct.errors import DataError, DecoctError, IntegrityError, RecipeError
from decoct.models.black_box import BlackBox
from decoct.models.onnx_model import OnnxFile
from decoct.models.remote import Remote
from decoct.models.saving import load_model
from decoct.objectives.base import Objective, Sum
from decoct.outputs import DENSE, Batch, Needs, Predictor
from decoct.steps.base import Context, Inputs
from decoct.steps.learning.batches import evaluation_batches, has_split, rows_of, training_source
from decoct.steps.learning.folds import Folds, answering_out_of_fold, folds_of
from decoct.steps.learning.pretrained import as_read, network_of
from decoct.tasks.inputs.base import STUDENT, TEACHER
from decoct.tasks.inputs.base import Inputs as ReaderInputs
from decoct.teachers import CATALOGUE as TEACHERS
from decoct.teachers.base import Teacher, for_kind
from decoct.teachers.classes import Alignment, align
from decoct.teachers.combining import COMBINED, Combination, Member, Once, Setting, joined_classes
from decoct.teachers.estimator import EstimatorTeacher
from decoct.teachers.remote.base import Ahead
from decoct.teachers.remote.black_box import BlackBox as Asked
from decoct.teachers.views import over_views
from decoct.training.engine import Engine

if TYPE_CHECKING:
    from decoct.tasks.answers.base import Answer
    from decoct.tasks.base import Task


@dataclass(frozen=True)
class OpenTeachers:
    """Teachers that are open: predictors by role, and of those that do not know all classes the ids of those known;
    `ahead`: those that may be asked before their answers are needed, and about which sources beside the main one."""

    teachers: dict[str, Predictor]
    known: dict[str, tuple[int, ...]]
    ahead: Mapping[Ahead, frozenset[str]] = field(default_factory=dict)


@contextlib.contextmanager
def open_teachers(
    inputs: Inputs,
    needs: Mapping[str, Needs],
    context: Context,
    engine: Engine,
    *,
    kinds: Mapping[str, Teacher] | None = None,
    combine: Combination | None = None,
    labels: int | None = None,
    averaged: bool = False,
    folds: int | None = None,
) -> Iterator[OpenTeachers]:
    """Opens the inputs named in `needs` as teachers while the body runs, their classes matched by name.

    `kinds`: how a teacher answers, by role, where it is not what suits its artifact; `combine`: how all of them answer
    as one, under the role "combined", its weights learned on held-out samples, of which `labels` have labels;
    `averaged` over the further views of a batch; `folds` in which estimators answer the rows that they were fitted on.
    """
    task = context.task
    with contextlib.ExitStack() as stack:
        teachers: dict[str, Predictor] = {}
        known: dict[str, tuple[int, ...]] = {}
        ahead: dict[Ahead, frozenset[str]] = {}
        for role, wanted in needs.items():
            kind = (kinds or {}).get(role)
            alignment = alignment_of(inputs[role], task, role)
            if alignment is not None or averaged or combine is not None or len(needs) > 1:
                wanted |= DENSE  # classes by name, means of views and agreement read logits
            opened = stack.enter_context(
                open_teacher(inputs[role], context, engine, wanted, kind, role=role, folds=folds)
            )
            if isinstance(opened, Ahead):
                ahead[opened] = wanted.sources
            if averaged:
                opened = over_views(opened, numbers=not task.answer.distribution)
            teachers[role] = opened if alignment is None else alignment(opened)
            if alignment is not None and alignment.known is not None:
                known[role] = alignment.known
        if combine is not None:
            teachers = {role: Once(each) for role, each in teachers.items()}
            members = {role: Member(each, known.get(role)) for role, each in teachers.items()}
            outputs = task.reading("student").interface.width
            joined = joined_classes(members, outputs)
            setting = _setting(outputs, context, engine, labels)
            teachers[COMBINED] = _narrowed(combine.join(members, setting), joined)
            if joined is not None:
                known[COMBINED] = joined
        yield OpenTeachers(teachers, known, ahead)


def _setting(outputs: int, context: Context, engine: Engine, labels: int | None) -> Setting:
    task = context.task

    def held_out() -> Iterator[Batch]:
        return _held_out(context, engine, labels)

    def error(predict: Predictor) -> float:
        return task.score(predict, held_out())[task.metric[0]]

    numbers = not task.answer.distribution
    return Setting(outputs, held_out, not numbers, error if numbers else None)


def _narrowed(predict: Predictor, known: tuple[int, ...] | None) -> Predictor:
    return predict if known is None else Alignment(known, known)(predict)


def _held_out(context: Context, engine: Engine, labels: int | None) -> Iterator[Batch]:
    """Labelled samples that decide on the weights of teachers: of the validation split, else of the training split."""
    if has_split(context, "validation"):
        batches = evaluation_batches(context, "validation")
    else:
        batches = iter(training_source(context, batch_size=256, augment=False, only="labelled", labels=labels))
    for batch in batches:
        yield engine.move(batch)


def open_teacher(
    value: Any,
    context: Context,
    engine: Engine,
    needs: Needs,
    kind: Teacher | None = None,
    *,
    role: str = TEACHER,
    folds: int | None = None,
) -> contextlib.AbstractContextManager[Predictor]:
    """A predictor under the teacher contract for an input: an artifact of any kind, or a model that needs no training.

    `kind` says how it answers; by default what suits the artifact. An artifact brings the task that it was made for. An
    estimator answers the rows that it was fitted on in `folds`, each by a fit that has not seen it; by default in 5.
    """
    subject, side = value, "teacher"
    if isinstance(value, OnnxFile):
        subject, suited = value.path, "onnx"
    elif isinstance(value, Remote):
        suited = "http"
    elif isinstance(value, BlackBox):
        subject, suited = Asked(_asked(value, context), rows_of(context), value.token), "black_box"
    elif isinstance(value, Artifact):
        suited = for_kind(value)
        if value.kind == "model":
            subject = load_model(value, given=context.given)
    else:
        subject, suited = network_of(value, context.task, side, context.given, answers=True), "frozen"
    if kind is None:
        kind = cast(Teacher, TEACHERS.resolve(suited)())
    if isinstance(value, Artifact):
        side = str(value.meta.get("side", side))
    reading = task_of(value, context.task).reading(role if role in context.readers else side)

    found = folds_by(value, context, kind, folds, role=role)
    opened = kind.open(subject, reading, needs, device=engine.device, autocast=engine.autocast)
    if found is None or not isinstance(kind, EstimatorTeacher):
        return opened
    return answering_out_of_fold(found, kind, context, opened)


def folds_by(value: Any, context: Context, kind: Teacher | None, folds: int | None, *, role: str) -> Folds | None:
    """The folds in which an input answers as a teacher; `kind` says how many before `folds` does.

    RecipeError where several are asked for of what is no estimator.
    """
    own = kind.folds if isinstance(kind, EstimatorTeacher) else None
    asked = folds if own is None else own
    if isinstance(value, Artifact) and value.kind == "estimator" and isinstance(kind, EstimatorTeacher | None):
        task = task_of(value, context.task)
        alike = task.answer.names == context.task.answer.names  # else the labels here number other classes
        return folds_of(value, role, context, task, asked) if alike else None
    if asked is not None and asked > 1:
        raise RecipeError(
            f"folds is {asked}, and {role} is no estimator that train_estimator made: only these are fitted again; "
            "leave folds out"
        )
    return None


def _asked(value: BlackBox, context: Context) -> Any:
    """The address of a black box, or the function that was given for it."""
    if value.url is not None:
        return value.url
    name = str(value.name)
    if name not in context.given:
        raise RecipeError(f"the black box {name!r} came from Python; pass its function as given={{{name!r}: ...}}")
    return context.given[name]


def to_combined(objective: Objective) -> Objective:
    """The objective with every term that names no teacher listening to the combination."""
    if isinstance(objective, Sum):
        return objective.replace(terms=tuple(map(to_combined, objective.terms)))
    return objective.replace(teacher=COMBINED) if objective.taught and objective.teacher is None else objective


def own_readers(inputs: Inputs, task: Task) -> dict[str, ReaderInputs]:
    """What teachers read that were made to read otherwise than the task says (another tokenizer), by role."""
    found: dict[str, ReaderInputs] = {}
    for role, value in inputs.items():
        if role == "model" or not isinstance(value, Artifact) or value.kind == "store":
            continue
        side = str(value.meta.get("side", TEACHER))
        own, theirs = task.inputs(side), _made_for(value, task).inputs(side)
        if type(own) is type(theirs) and not own.prepares and not own.raw and not theirs.raw and own != theirs:
            found[role] = theirs
    return found


def _made_for(value: Any, task: Task) -> Task:
    """The task that an artifact or a server was made for; `task` where nobody says."""
    kind: type[DecoctError]
    if isinstance(value, Remote):
        plain, source, kind = value.info()["task"], value.url, DataError
    elif isinstance(value, Artifact) and (value.folder / "task.json").is_file():
        plain, source, kind = value.json("task.json", Described), f"{value.folder}/task.json", IntegrityError
    else:
        return task
    if plain["use"] != task.use:
        found: Task = described_by("decoct.tasks", plain, source, error=kind)
        return found
    try:  # also a class that no catalogue lists
        return type(task).parse({name: field for name, field in plain.items() if name != "use"})
    except RecipeError as error:
        raise kind(f"{source} is damaged: {error}") from None


def task_of(value: Any, task: Task) -> Task:
    """The task in which a teacher answers: `task` with the classes that its artifact names.

    Its inputs are also prepared as the artifact's task says, unless they come prepared from Python (`raw`).
    """
    return as_read(value, task.as_taught_by(_made_for(value, task)))


def alignment_of(value: Any, task: Task, role: str) -> Alignment | None:
    """How the classes of a teacher, as its artifact names them, meet the task's; None where they are the same."""
    theirs = task_of(value, task)
    refuse_other_heads(task.answer, theirs.answer, role)
    own, known = task.answer.names, theirs.answer.names
    raw = theirs.inputs(STUDENT).raw and task.inputs(STUDENT).raw
    if raw and numbered(known) and numbered(own) and len(known) != len(own):
        raise RecipeError(
            f"{role}: it knows {len(known)} classes and the student has {len(own)}, and neither has "
            "names by which they could be matched; give task.classes, or a student of as many"
        )
    return align(known, own, role) if known and own else None


def refuse_other_heads(own: Answer, theirs: Answer, role: str) -> None:
    """RecipeError where a teacher of several heads names the classes of one otherwise: heads are taken as they are."""
    for name in sorted(set(own.parts) & set(theirs.parts)):
        ours, known = own.parts[name].names, theirs.parts[name].names
        if ours and known and ours != known:
            raise RecipeError(
                f"{role}: its head {name!r} knows the classes {_few(known)}, the task has {_few(ours)}; classes of "
                "heads are not matched by name: train the teacher on data of the same classes in the same order"
            )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")


def numbered(classes: Sequence[str]) -> bool:
    """Whether classes have no names but their numbers.

    >>> numbered(("0", "1")), numbered(("no", "yes"))
    (True, False)
    """
    return list(classes) == [str(number) for number in range(len(classes))]
