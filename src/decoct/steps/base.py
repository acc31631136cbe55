"""Step, one verb of a recipe, and Context, what it runs in."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import field_validator

from decoct.artifact import Artifact
from decoct.data.base import Split
from decoct.data.saving import with_train
from decoct.data.sources import Collate
from decoct.errors import RecipeError, dotted
from decoct.memory import within_memory
from decoct.models.base import identity
from decoct.spec import Spec
from decoct.tasks.inputs.base import STUDENT
from decoct.training.processes import ONE, Processes
from decoct.training.stopping import Watch

if TYPE_CHECKING:
    from decoct.data.base import Dataset
    from decoct.tasks.answers.base import Answer
    from decoct.tasks.base import Task
    from decoct.tasks.inputs.base import Inputs as ReaderInputs

TRAIN = "train"
"""The role of samples that a step trains on in place of the training split."""
StepProblem = tuple[tuple[str | int, ...], str, Any]
"""Where in a step something is wrong, what, and the value that stands there."""
Inputs = Mapping[str, Any]
"""By role: an Artifact, or a Model Spec to be built fresh."""


@dataclass(frozen=True)
class Context:
    """What a step runs in.

    `task` is resolved; `folder` is where the artifact goes; `work` is a folder for checkpoints that survives a kill and
    goes when the step is done; `seed` is its own, derived from `run_seed`; `key` goes into the artifact; `given`
    holds objects that came from Python; `progress` takes (done, total, text) for the display; `processes` are those
    that do this step, of which the first writes what there is to write; `readers` what teachers read that do
    not read as the task says, by role; `sources` are further data beside the main ones, opened, by name; `watch` sees
    the records of training.
    """

    task: Task
    data: Dataset
    name: str
    folder: Path
    work: Path
    seed: int
    run_seed: int = 0
    key: str = ""
    lineage: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    progress: Callable[[float, float, str], None] = lambda done, total, text: None
    device: str = "auto"
    precision: str = "no"
    processes: Processes = ONE
    sources: Mapping[str, Dataset] = field(default_factory=dict)
    readers: Mapping[str, ReaderInputs] = field(default_factory=dict)
    watch: Watch | None = None

    @property
    def collate(self) -> Collate:
        """Makes batches of the task's samples, with inputs for the `readers` of this step too."""
        return partial(self.task.collate, readers=self.readers) if self.readers else self.task.collate

    def rows(self, split: Split) -> Split:
        """The rows that models read of a split's samples."""
        return self.task.inputs(STUDENT).rows(split)

    def run(
        self,
        step: Step,
        inputs: Inputs,
        *,
        data: Dataset | None = None,
        task: Task | None = None,
        seed: int | None = None,
    ) -> Artifact:
        """Runs another step inside this one, in the work folder, and gives its artifact.

        `data` (of a fold, a site), `task` (resolved) and `seed` where they differ from this step's. One that an
        interrupted run has finished with the same of all these is taken as it is; one that it began goes on. The
        artifact goes with the work folder: copy what is to stay.
        """
        inner = replace(
            self,
            name=step.name,
            data=self.data if data is None else data,
            task=self.task if task is None else task,
            seed=self.seed if seed is None else seed,
            progress=lambda done, total, text: self.progress(done, total, f"{step.name}: {text}"),
            watch=None if self.watch is None else self.watch.inside(step.name),
        )
        name = f"{step.name}-{_key_inside(step, inputs, inner)[:16]}"
        folder = self.work / "steps" / name
        if self.processes.shared(folder.is_dir):
            return Artifact.load(folder)
        inner = replace(inner, folder=folder, work=self.work / "steps" / f".{name}.work")
        return inner.carry_out(step, inputs)

    def carry_out(self, step: Step, inputs: Inputs) -> Artifact:
        """Runs a step whose own context this is: in all processes, or in the first while the others wait for it.

        An artifact of kind `data` under the role "train" stands for the training split, for this step alone.
        ResourceError where memory is full.
        """
        with within_memory(self.name):
            return self._carried_out(step, inputs)

    def _carried_out(self, step: Step, inputs: Inputs) -> Artifact:
        if TRAIN in step.optional and TRAIN in inputs:
            others = {role: each for role, each in inputs.items() if role != TRAIN}
            return replace(self, data=with_train(self.data, inputs[TRAIN]))._carried_out(step, others)
        step = _suited(step, self.task.answer)
        if step.everywhere or not self.processes.several:
            return step.run(inputs, self)
        by_itself = replace(self, processes=ONE)
        return self.written(lambda: step.run(inputs, by_itself))

    def written(self, write: Callable[[], Artifact]) -> Artifact:
        """The artifact of this folder, which the first process writes while the others wait for it."""
        return self.processes.alone(write, lambda: Artifact.load(self.folder, verify=False))


class Step(Spec):
    """One verb: takes artifacts by role, returns a new one, never changes its inputs.

    `name` is unique in a recipe and names the artifact; `inputs` maps roles to the names of steps or models;
    where a role is left out, the step before it is taken.
    """

    name: str
    inputs: Mapping[str, str] = {}

    version: ClassVar[int] = 1
    """Raised when the step's result changes for equal settings; part of the key that decides on skipping."""
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Kinds of Artifact that each role takes, "spec" for a Model Spec; the first role defaults to the step before."""
    optional: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Roles that may be left out, and the kinds that they take; "train" is given to the step as its training split."""
    gives: ClassVar[str] = "model"
    learns: ClassVar[bool] = False
    """Whether the result depends on the seed, so that `--seeds` repeats it."""
    everywhere: ClassVar[bool] = False
    """Whether all processes of a run do the step together; else the first does it alone."""
    machine_bound: ClassVar[bool] = False
    """Whether the result depends on the machine, which then is part of the key."""
    not_in_key: ClassVar[tuple[str, ...]] = ("checkpoint_seconds",)
    keyed_with: ClassVar[Mapping[str, str]] = {}
    """Settings that change the result only where another one is set; else their default stands in the key."""
    machine_bound_by: ClassVar[tuple[str, ...]] = ()
    """Settings that make the result depend on the machine where they are set."""

    @property
    def depends_on_machine(self) -> bool:
        """Whether the result depends on the machine: of this kind of step always, or under its settings."""
        return self.machine_bound or any(getattr(self, name) is not None for name in self.machine_bound_by)

    def for_answer(self, answer: Answer) -> Step:
        """The same step with what it leaves open as a task wants it that answers so."""
        return self

    def problems_with(self, answer: Answer) -> Iterator[StepProblem]:
        """The settings that do not suit a task that answers so: the path, what is wrong, the value."""
        yield from ()

    def seed_name(self) -> str:
        """What the step's seed is derived from, beside the run's: by default its name."""
        return self.name

    @field_validator("inputs")
    @classmethod
    def _plain_roles(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for role in value:  # a role may name a folder inside the artifact
            _check_name(role)
        return value

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        _check_name(value)
        return value

    @abstractmethod
    def run(self, inputs: Inputs, context: Context) -> Artifact:
        """Does the work and writes the artifact to `context.folder`."""


def _suited(step: Step, answer: Answer) -> Step:
    """The step as a task wants it that answers so; RecipeError where a setting does not suit it."""
    step = step.for_answer(answer)
    wrong = [f"{dotted(path)}: {message}" for path, message, _ in step.problems_with(answer)]
    if wrong:
        raise RecipeError(f"{step.name}: " + "; ".join(wrong))
    return step


def _key_inside(step: Step, inputs: Inputs, context: Context) -> str:
    """The hash of all in which two steps that run inside one other may differ."""
    parts = {
        "step": step.keyed(),
        "version": step.version,
        "inputs": {role: _identity(value) for role, value in inputs.items()},
        "data": context.data.fingerprint,
        "task": context.task.digest(),
        "seed": context.seed,
        "sources": {name: each.fingerprint for name, each in context.sources.items()},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _identity(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_identity(each) for each in value]
    return value.hash if isinstance(value, Artifact) else identity(value)


def _check_name(value: str) -> None:
    if not value or not value.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f"{value!r} is no name; use letters, digits, _ and -")
