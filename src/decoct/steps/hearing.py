"""Opening teachers: what suits an artifact, and the classes that it knows."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, cast

from decoct.artifact import Artifact
from decoct.models.given import fresh
from decoct.models.onnx_model import OnnxFile
from decoct.models.saving import load_model
from decoct.objectives.base import Objective, Sum
from decoct.outputs import Needs, Predictor
from decoct.spec import Choice
from decoct.steps.base import Context
from decoct.tasks.classification import Classification
from decoct.tasks.image_classification import ImageClassification
from decoct.teachers import CATALOGUE as TEACHERS
from decoct.teachers.base import Teacher, for_kind
from decoct.teachers.classes import Alignment, align
from decoct.teachers.combining import COMBINED
from decoct.training.engine import Engine

if TYPE_CHECKING:
    from decoct.tasks.base import Task


def open_teacher(
    value: Any, context: Context, engine: Engine, needs: Needs, kind: Teacher | None = None
) -> contextlib.AbstractContextManager[Predictor]:
    """A predictor under the teacher contract for an input: an artifact of any kind, or a model that needs no training.

    `kind` says how it answers; by default what suits the artifact. An artifact brings the task that it was made for.
    """
    subject, side = value, "teacher"
    if isinstance(value, OnnxFile):
        subject, suited = value.path, "onnx"
    elif isinstance(value, Artifact):
        suited = for_kind(value)
        if value.kind == "model":
            subject, side = load_model(value, given=context.given), value.meta["side"]
    else:
        subject, suited = fresh(value, context.task.interface(side), context.given), "frozen"
    if kind is None:
        kind = cast(Teacher, TEACHERS.resolve(suited)())
    task = task_of(value, context.task)
    return kind.open(subject, task, needs, side=side, device=engine.device, autocast=engine.autocast)


def to_combined(objective: Objective) -> Objective:
    """The objective with every term that names no teacher listening to the combination."""
    if isinstance(objective, Sum):
        return objective.replace(terms=tuple(map(to_combined, objective.terms)))
    return objective.replace(teacher=COMBINED) if objective.taught and objective.teacher is None else objective


def task_of(value: Any, task: Task) -> Task:
    """The task in which a teacher answers: `task` with the classes that its artifact names.

    Images are also prepared as the artifact's task says, unless they come prepared from Python (`raw`).
    """
    if not isinstance(value, Artifact) or not (value.folder / "task.json").is_file():
        return task
    theirs = Choice("decoct.tasks").validate(value.json("task.json"))
    if not isinstance(task, Classification) or not isinstance(theirs, Classification):
        return task
    pixels = isinstance(task, ImageClassification) and isinstance(theirs, ImageClassification)
    if pixels and not task.raw and not theirs.raw:
        return theirs
    return task if task.classes == theirs.classes else task.replace(classes=theirs.classes)


def alignment_of(value: Any, task: Task, role: str) -> Alignment | None:
    """How the classes of a teacher, as its artifact names them, meet the task's; None where they are the same."""
    theirs = task_of(value, task)
    if not isinstance(task, Classification) or not isinstance(theirs, Classification):
        return None
    return align(theirs.classes, task.classes, role) if theirs.classes and task.classes else None
