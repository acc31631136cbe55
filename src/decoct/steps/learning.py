"""What training and distilling share: build, draw, descend, select, save."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import nn

from decoct.artifact import Artifact, writing
from decoct.errors import RecipeError
from decoct.models.base import Model
from decoct.models.given import fresh
from decoct.models.onnx_model import OnnxFile
from decoct.models.saving import load_model, save_model
from decoct.objectives.base import Objective, Probe
from decoct.objectives.criterion import Criterion, needs_of
from decoct.outputs import Batch, Needs, Outputs, Predictor
from decoct.spec import Choice
from decoct.steps.base import Context, Inputs, Step
from decoct.steps.drawing import few, has_split, scores, training_source
from decoct.teachers import CATALOGUE as TEACHERS
from decoct.teachers.base import Teacher, for_kind
from decoct.training.budget import Budget
from decoct.training.fit import History, Options, fit
from decoct.training.optimizers import AdamW, Optimizer
from decoct.training.schedules import Cosine
from decoct.training.state import State
from decoct.training.updates import Descent, Engine

if TYPE_CHECKING:
    from decoct.tasks.base import Side, Task

PROBE_SAMPLES = 4
DEFAULT_OPTIMIZER = AdamW(lr=Cosine(start=2e-3, end=0.0, warmup=0.05))


class Learning(Step):
    """The settings of every step that trains by descent.

    `budget` in one unit; `batch_size` samples a batch, `accumulate` batches an optimizer step; `select` keeps the
    weights that were best on the validation split, or the last; `side` is whose preprocessing the model gets;
    `labels`: how many training samples keep their label in this step, drawn evenly over the classes.
    """

    learns: ClassVar[bool] = True

    budget: Budget = Budget(epochs=10)
    optimizer: Annotated[Optimizer, Choice("decoct.training.optimizers")] = DEFAULT_OPTIMIZER
    batch_size: int = Field(default=128, ge=1)
    accumulate: int = Field(default=1, ge=1)
    max_grad_norm: float | None = Field(default=None, gt=0)
    select: Literal["best", "last"] = "best"
    side: str = "student"
    augment: bool = True
    labels: int | None = Field(default=None, ge=1)
    precision: Literal["no", "bf16", "fp16"] | None = None
    log_every: int = Field(default=10, ge=1)
    checkpoint_seconds: float = Field(default=30.0, gt=0)

    def seed_name(self) -> str:
        """The model's name: two steps that train one model start from the same weights and see the same order."""
        return self.inputs.get("model", self.name)


@dataclass(frozen=True)
class Student:
    """The module that learns, the Spec that rebuilds it, and whose preprocessing it gets."""

    module: nn.Module
    spec: Model
    side: Side

    def forward(self, task: Task, needs: Needs) -> Callable[[Batch], Outputs]:
        """The predictor of this student as it is now, capturing `needs`."""
        return lambda batch: task.forward(self.module, batch, needs, self.side)


def learn(
    step: Learning,
    inputs: Inputs,
    context: Context,
    objective: Objective,
    only: Literal["all", "labelled"],
    kinds: Mapping[str, Teacher] | None = None,
) -> Artifact:
    """Trains the input "model" on `objective`, listening to all other inputs as teachers; saves the artifact.

    `kinds`: how a teacher answers, by role, where it is not what suits its artifact.
    """
    task = context.task
    engine = Engine(device=context.device, precision=step.precision or context.precision)
    seed_everything(context.seed)
    student = build_student(inputs["model"], task, step.side, context.given)
    student.module.to(engine.device)
    roles = [role for role in inputs if role != "model"]
    needs = needs_of(objective, roles)
    with ExitStack() as stack:
        teachers = {
            role: stack.enter_context(open_teacher(inputs[role], context, engine, needs[role], (kinds or {}).get(role)))
            for role in roles
        }
        forward = student.forward(task, needs["student"])
        batch = few(context, PROBE_SAMPLES).to(engine.device)
        criterion = build_criterion(objective, task, batch, forward, teachers, {"student": student.module})
        criterion.to(engine.device)
        source = training_source(
            context, batch_size=step.batch_size, augment=step.augment, only=only, labels=step.labels
        )
        optimizer = step.optimizer.build(nn.ModuleList([student.module, criterion]))
        update = Descent(
            forward,
            teachers,
            criterion,
            optimizer,
            engine,
            max_grad_norm=step.max_grad_norm,
            lr=step.optimizer.lr,
        )
        history = fit(
            update,
            source,
            State(student=student.module, optimizer=optimizer, criterion=criterion, source=source),
            step.budget,
            work=context.work,
            validate=_validation(student, context, engine),
            options=Options(
                accumulate=step.accumulate,
                select=task.metric if step.select == "best" and has_split(context, "validation") else None,
                log_every=step.log_every,
                checkpoint_seconds=step.checkpoint_seconds,
                progress=context.progress,
            ),
        )
    return _save(student, history, context)


def build_student(value: Any, task: Task, side: Side, given: Mapping[str, Any]) -> Student:
    """The model of an input: built fresh from its Spec, or loaded from an artifact to be trained further."""
    if not isinstance(value, Artifact):
        return Student(fresh(value, task.interface(side), given), value, side)
    spec = Choice("decoct.models").validate(value.json("model.json")["base"])
    return Student(load_model(value, given=given), spec, value.meta["side"])


def open_teacher(
    value: Any, context: Context, engine: Engine, needs: Needs, kind: Teacher | None = None
) -> contextlib.AbstractContextManager[Predictor]:
    """A predictor under the teacher contract for an input: an artifact of any kind, or a model that needs no training.

    `kind` says how it answers; by default what suits the artifact.
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
    return kind.open(subject, context.task, needs, side=side, device=engine.device, autocast=engine.autocast)


def build_criterion(
    objective: Objective,
    task: Task,
    batch: Batch,
    forward: Callable[[Batch], Outputs],
    teachers: Mapping[str, Predictor],
    modules: Mapping[str, nn.Module],
) -> Criterion:
    """The criterion for an objective, its terms shaped by one small batch seen in eval mode."""
    training = {name: module.training for name, module in modules.items()}
    for module in modules.values():
        module.eval()
    with torch.no_grad():
        said = forward(batch)
        heard = {name: teacher(batch) for name, teacher in teachers.items()}
    for name, module in modules.items():
        module.train(training[name])
    return Criterion.build(objective, Probe(task, batch, said, heard, modules))


def seed_everything(seed: int) -> None:
    """Seeds torch, NumPy's global state and `random`."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _validation(student: Student, context: Context, engine: Engine) -> Callable[[], dict[str, float]] | None:
    if not has_split(context, "validation"):
        return None
    predict = student.forward(context.task, Needs())

    def validate() -> dict[str, float]:
        with engine.autocast():
            return scores(predict, context, "validation", engine.device)

    return validate


def _save(student: Student, history: History, context: Context) -> Artifact:
    module, task = student.module.cpu().eval(), context.task
    batch = few(context, PROBE_SAMPLES)

    def probe(candidate: nn.Module) -> torch.Tensor:
        logits = task.forward(candidate, batch, Needs(), student.side).logits
        if logits is None:
            raise RecipeError(f"{type(candidate).__name__} returns no logits")
        return logits

    with writing(
        context.folder,
        kind="model",
        name=context.name,
        key=context.key,
        lineage=context.lineage,
        meta={"side": student.side, "seed": context.run_seed},
    ) as draft:
        save_model(
            draft,
            module,
            student.spec,
            task.interface(student.side),
            side=student.side,
            probe=probe,
            given=context.given,
        )
        draft.write_json("task.json", task.plain())
        draft.scores.update(_kept_scores(history))
        draft.write_json("scores.json", draft.scores)
        draft.write_json("history.json", {"best": history.best, "steps": history.steps})
        if (context.work / "log.jsonl").is_file():
            shutil.copy(context.work / "log.jsonl", draft.folder / "log.jsonl")
    return Artifact.load(context.folder)


def _kept_scores(history: History) -> dict[str, float]:
    """The figures of the weights that were kept: the best, or those of the last validation."""
    if history.best:
        return history.best
    validated = [record["scores"] for record in history.records if record["kind"] == "validation"]
    return {name: score for name, score in validated[-1].items() if score is not None} if validated else {}
