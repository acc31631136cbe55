"""The Python surface: distil one's own modules on one's own loaders, in one call or in one's own loop."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from decoct.api.arguments import data_of, loader_of, model_of, shaped, task_of
from decoct.api.export import export
from decoct.api.samples import SAMPLES, Real
from decoct.artifact import Artifact
from decoct.errors import RecipeError, did_you_mean
from decoct.models.given import plain_network
from decoct.models.saving import load_model
from decoct.models.stored import Stored
from decoct.objectives.answers import refuse_other_answers
from decoct.objectives.base import Objective, as_objective
from decoct.objectives.criterion import Criterion, needs_of
from decoct.objectives.layers import choose_layers, undecided_roles
from decoct.outputs import Batch, Needs, Outputs, Predictor
from decoct.recipe.recipe import Recipe
from decoct.report.inline import scores_html
from decoct.runner.execution import Options, Run, prepare
from decoct.steps.base import Context
from decoct.steps.distill import Distill
from decoct.steps.learning.building import build_criterion
from decoct.steps.shipping.export import verification
from decoct.steps.train import Train
from decoct.tasks.base import Task
from decoct.teachers.frozen import Frozen
from decoct.teachers.stored import StoredTeacher
from decoct.training.budget import Budget
from decoct.training.clock import Clock
from decoct.training.state import Randomness


class Distilled:
    """What `distill` gives: the trained `student`, its `scores`, the `history` of the log, and the whole `run`."""

    def __init__(self, run: Run, given: Mapping[str, Any]) -> None:
        self.run = run
        self.folder = run.folder
        self._given = given

    @property
    def artifact(self) -> Artifact:
        """The student's artifact."""
        return self.run.artifact("student")

    @property
    def student(self) -> nn.Module:
        """The trained student, in eval mode."""
        return load_model(self.artifact, given=self._given).module

    @property
    def scores(self) -> dict[str, float]:
        """The student's figures on the validation data, at the checkpoint that was kept."""
        return dict(self.artifact.scores)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The records of the student's log."""
        import json

        text = self.artifact.file("log.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def export(self, path: Path | str, **options: Any) -> dict[str, Any]:
        """Writes the student to `path`; see `decoct.export` for the options.

        Without `example` the file is verified on up to 256 samples of the test data, else of the validation data, else
        of the training data.
        """
        if options.get("example") is None:
            options["example"] = Real(self._samples())
        return export(self.artifact, path, given=self._given, **options)

    def _samples(self) -> list[Batch]:
        """Samples of the data that it was trained and scored on; the random state stays."""
        randomness = Randomness()
        before = randomness.state_dict()
        try:
            data, task = prepare(self.run.recipe, Options(given=self._given))
            context = Context(task, data, "export", self.folder, self.folder, seed=0, given=self._given)
            return verification(context, SAMPLES)
        finally:
            randomness.load_state_dict(before)

    def __repr__(self) -> str:
        return f"Distilled(folder={str(self.folder)!r}, scores={self.scores})"

    def _repr_html_(self) -> str:
        """What a notebook shows: validation scores of what was trained, and the student's loss by step."""
        scores = {each.name: each.scores for each in self.run.artifacts.values() if each.scores}
        loss = [(each["step"], each["loss"]) for each in self.history if each["kind"] == "train"]
        return scores_html(scores, {"loss": loss})


def distill(
    teacher: Any,
    student: Any,
    train: Any,
    val: Any = None,
    test: Any = None,
    *,
    task: Any = "image_classification",
    objective: Any = None,
    epochs: float | None = None,
    alone: bool = False,
    out: Path | str | None = None,
    seed: int = 0,
    device: str = "auto",
    track: str | Sequence[str] = (),
    callbacks: Sequence[Any] = (),
    **settings: Any,
) -> Distilled:
    """Trains `student` on what `teacher` says about `train`; neither argument is changed.

    `teacher`, `student`: modules, names such as "timm/resnet34", paths of what is pretrained (`./FOLDER`, `runs/x` as
    `./runs/x`), artifacts, or Model Specs; a `teacher` may be a fitted model of scikit-learn, or None: the student is
    trained alone. `train`, `val`, `test`: torch data sets, or DataLoaders that give (inputs, target), or a Data Spec as
    `train` alone. `task`: a name or Task Spec. `objective`: 0.9 KD (of numbers regression_kd) + 0.1 task loss by
    default. `alone` trains the same student without the teacher too, as step "student_alone". `out`: the run's folder;
    a temporary one by default. `settings` go to the Distill step (`optimizer`, `batch_size`, `precision`, `budget`,
    `stop`, ...). `device`: auto, cpu, cuda, cuda:1 or mps. `track`: names of trackers (tensorboard, wandb, mlflow,
    trackio). `callbacks`: objects with `on_step(step, losses)` or `on_validation(step, scores)`, which stop training
    where they return True or a reason. A call that was stopped is continued by the same call.
    """
    given: dict[str, Any] = {}
    _check_settings(settings)
    asked = settings.get("batch_size")
    at_once = asked if isinstance(asked, int) else Distill.model_fields["batch_size"].default
    train = loader_of(train, at_once, shuffle=True)
    data = data_of(train, loader_of(val, at_once), loader_of(test, at_once), given)
    problem = task_of(task, raw=data.use == "given")
    if data.use == "given":
        problem = shaped(problem, train, {"student": student, "teacher": teacher})
    pair = ({} if teacher is None else {"big": ("teacher", teacher)}) | {"small": ("student", student)}
    names = {name: model_of(role, value, given) for name, (role, value) in pair.items()}
    if epochs is not None:
        settings["budget"] = Budget(epochs=epochs)
    lesson = {} if objective is None else {"objective": as_objective(objective)}
    steps: list[Any] = []
    own = {name: value for name, value in settings.items() if name in Train.model_fields}
    if alone and teacher is not None:
        steps.append(Train(name="student_alone", inputs={"model": "small"}, **own))
    if teacher is None:
        steps.append(Train(name="student", inputs={"model": "small"}, **lesson, **own))
    else:
        steps.append(Distill(name="student", inputs={"model": "small", "teacher": "big"}, **lesson, **settings))
    recipe = Recipe(seed=seed, task=problem, data=data, models=names, steps=tuple(steps))
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="decoct-"))
    randomness = Randomness()
    before = randomness.state_dict()
    try:
        trackers = (track,) if isinstance(track, str) else tuple(track)
        run = recipe.run(folder, given=given, device=device, track=trackers, callbacks=callbacks)
        return Distilled(run, given)
    finally:
        randomness.load_state_dict(before)


def _check_settings(settings: Mapping[str, Any]) -> None:
    """RecipeError for a setting that neither `distill` nor the Distill step has."""
    fixed = {"name", "inputs", "objective"}
    known = set(Distill.model_fields) - fixed
    also = [name for name in inspect.signature(distill).parameters if name != "settings"]
    for name in settings:
        if name not in known:
            raise RecipeError(f"distill: {name!r} is no setting; {did_you_mean(name, [*known, *also])}")


def _opened(
    subject: nn.Module | Stored, task: Task, needs: Needs, side: str, device: torch.device
) -> AbstractContextManager[Predictor]:
    """A module under the teacher contract, or a store; it answers on `device`."""
    reading = task.reading(side)
    if isinstance(subject, Stored):
        return StoredTeacher().open(subject.open(), reading, needs, device=device)
    return Frozen().open(subject, reading, needs, device=device)


def _device(module: nn.Module) -> torch.device:
    """Where a module takes its inputs: the device of its first parameter or buffer; the CPU where it has none."""
    return next((each.device for each in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def _refuse_shared(teachers: Mapping[str, Any], student: nn.Module) -> None:
    """RecipeError where a teacher and the student hold the same tensor: the teacher's are frozen, its modes eval."""
    for role, teacher in teachers.items():
        if not isinstance(teacher, nn.Module):
            continue
        held = {id(each) for each in (*teacher.parameters(), *teacher.buffers())}
        for name, each in (*student.named_parameters(), *student.named_buffers()):
            if id(each) in held:
                where = name.rpartition(".")[0] or type(student).__name__
                raise RecipeError(
                    f"student and {role} share {where!r} ({name}), which would be frozen with the teacher; "
                    "give one of them a copy: copy.deepcopy(module)"
                )


class Distiller(nn.Module):
    """An objective between a teacher and a student, inside one's own loop.

    Call it with a batch's inputs and targets: it gives the loss and each term by name. Its parameters are the student's
    and those that terms learn (projectors); the teacher is no part of it, and stays under the teacher contract, on the
    student's device, from `with` to its end. A teacher may be `dc.Stored(path)`, whose answers are found by the content
    of the inputs. Terms that learn need `example`, the inputs of one batch, before the optimizer is made.

    >>> import torch
    >>> big, small = nn.Linear(4, 3), nn.Linear(4, 3)
    >>> import decoct as dc
    >>> with Distiller(big, small, 0.9 * dc.KD(temperature=4) + 0.1 * dc.CrossEntropy()) as distiller:
    ...     loss, parts = distiller(torch.ones(2, 4), torch.tensor([0, 2]))
    >>> sorted(parts), loss.requires_grad
    (['cross_entropy', 'kd'], True)
    """

    def __init__(
        self,
        teacher: nn.Module | Stored | Mapping[str, nn.Module | Stored],
        student: nn.Module,
        objective: Objective,
        *,
        task: Any = "image_classification",
        example: Any = None,
        target: Any = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.task = task_of(task, raw=True)
        self._subjects = dict(teacher) if isinstance(teacher, Mapping) else {"teacher": teacher}
        _refuse_shared(self._subjects, student)
        refuse_other_answers(objective, self.task.answer)
        if undecided_roles(objective, tuple(self._subjects)):
            if example is None:
                raise RecipeError("this objective has layers: auto; give `example=inputs`, so that they can be chosen")
            self.objective = objective = self._decided(self._batch(example, target))
        self._needs = needs_of(objective, tuple(self._subjects), self.task.answer.needs)
        self._stack: ExitStack | None = None
        self._teachers: dict[str, Any] = {}
        self.criterion: Criterion | None = None
        if example is not None:
            with self:
                self._build(self._batch(example, target))

    def __enter__(self) -> Distiller:
        with ExitStack() as stack:
            device = _device(self.student)
            for name, module in self._subjects.items():
                opened = _opened(module, self.task, self._needs[name], "teacher", device)
                self._teachers[name] = stack.enter_context(opened)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        stack, self._stack, self._teachers = self._stack, None, {}
        if stack is not None:
            stack.__exit__(*error)

    def forward(self, inputs: Any, target: Any = None, *, progress: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and each term's value without weight, by name. `progress` in [0, 1] is where schedules stand."""
        if self._stack is None:
            raise RecipeError("the Distiller is closed; call it inside `with Distiller(...) as distiller:`")
        batch = self._batch(inputs, target)
        if self.criterion is None:
            self._build(batch)
            if any(True for _ in self._criterion().parameters()):
                raise RecipeError("this objective has terms that learn; give `example=inputs`, then make the optimizer")
        teacher_outputs = {name: teacher(batch) for name, teacher in self._teachers.items()}
        outputs = self._forward(batch)
        return self._criterion()(outputs, teacher_outputs, batch, Clock(progress=progress))

    def _decided(self, batch: Batch) -> Objective:
        """The objective with its layers chosen from one batch."""

        def look(role: str, needs: Needs) -> Outputs:
            module = self.student if role == "student" else self._subjects[role]
            side = "student" if role == "student" else "teacher"
            with _opened(module, self.task, needs, side, _device(self.student)) as predict:
                return predict(batch)

        return choose_layers(self.objective, tuple(self._subjects), look)

    def _criterion(self) -> Criterion:
        assert self.criterion is not None
        return self.criterion

    def _forward(self, batch: Batch) -> Outputs:
        reading = self.task.reading("student")
        network = plain_network(self.student, reading.kind, per_pixel=reading.per_pixel)
        return reading.forward(network, batch, self._needs["student"])

    def _batch(self, inputs: Any, target: Any) -> Batch:
        return self.task.from_loader((inputs, target))

    def _build(self, batch: Batch) -> None:
        self.criterion = build_criterion(
            self.objective, self.task, batch, self._forward, self._teachers, {"student": self.student}
        )
