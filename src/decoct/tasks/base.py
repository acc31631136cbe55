"""Task, what a model reads joined to what it answers; Reading, a task as one of its models meets it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from decoct.artifact import Artifact, Described, described_by
from decoct.data.base import Dataset, Split
from decoct.data.remember import Remembered
from decoct.errors import DataError, IntegrityError, RecipeError
from decoct.models.failures import telling
from decoct.models.interface import MAIN, InputKind, Interface, Port, Program
from decoct.models.own_inputs import with_own_inputs
from decoct.outputs import Batch, Needs, Outputs, Predictor
from decoct.spec import Spec
from decoct.tasks.answers.base import Answer, Scores, tallied
from decoct.tasks.inputs.base import READERS, STUDENT, Inputs, Trace
from decoct.tasks.items import inputs_and_target

if TYPE_CHECKING:
    from decoct.models.base import Network

_INPUTS: Remembered[Inputs] = Remembered()
_ANSWERS: Remembered[Answer] = Remembered()

RECORD = "task.json"
"""The file of an artifact that says for which task it was made."""


def read_task(artifact: Artifact) -> Task:
    """The task that an artifact was made for; IntegrityError where it holds none that is understood."""
    if not (artifact.folder / RECORD).is_file():
        raise IntegrityError(f"{artifact.folder} holds no {RECORD}, so nobody knows what its model takes")
    found: Task = described_by("decoct.tasks", artifact.json(RECORD, Described), artifact.folder / RECORD)
    return found


WHOLE = ("maps", "boxes")
"""Answers that are about all of a picture, of which nothing may be cut off."""


class Task(Spec):
    """One kind of problem: Inputs joined to an Answer.

    As written in a recipe a Task may leave open what the data decide (normalisation, classes, vocabulary);
    `resolve` returns the Task with all of it filled in, still plain data, and that one is saved with each artifact.
    All methods below `resolve` are for resolved Tasks.
    """

    @abstractmethod
    def resolve(self, data: Dataset) -> Self:
        """Fills in from the training split what was left open; a resolved Task resolves to itself."""

    @abstractmethod
    def half_inputs(self) -> Inputs:
        """What models read, with the short forms of all readers."""

    @abstractmethod
    def half_answer(self) -> Answer:
        """What models answer."""

    @abstractmethod
    def with_values(self, inputs: Mapping[str, Any], answer: Mapping[str, Any]) -> Self:
        """The Task with other values in the fields of its halves."""

    @abstractmethod
    def as_taught_by(self, theirs: Task) -> Task:
        """The Task in which a teacher answers here that was made for the Task `theirs`: with its own classes, and its
        own inputs where both read the same samples."""

    @abstractmethod
    def of_head(self, name: str) -> Self:
        """The Task with one of its heads alone; RecipeError where it has none of that name."""

    @abstractmethod
    def as_given(self) -> Self:
        """The Task of inputs that a user's loaders give as models take them (`raw`), unless it says otherwise."""

    def inputs(self, reader: str) -> Inputs:
        """What one reader reads; readers with equal Inputs share one object."""
        return _INPUTS.get(self, reader, lambda: self._inputs_of(reader))

    @property
    def answer(self) -> Answer:
        """What models answer."""
        return _ANSWERS.get(self, None, self.half_answer)

    def reading(self, reader: str) -> Reading:
        """The Task as one of its models meets it."""
        return Reading(self, reader)

    @property
    def metric(self) -> tuple[str, Literal["max", "min"]]:
        """The main metric and whether more or less of it is better."""
        return self.answer.metric

    def collate(
        self,
        split: Split,
        indices: np.ndarray,
        *,
        seeds: np.ndarray | None = None,
        view: Any = 0,
        readers: Mapping[str, Inputs] | None = None,
    ) -> Batch:
        """The batch of the samples at `indices`, with raw inputs for every reader, on the CPU.

        `seeds` uint64 `[B]`: vary sample i by a generator seeded with `seeds[i]` (the same pixels for all readers);
        None: as they are. `readers`: further readers with inputs of their own, by name.
        """
        wanted = {name: self.inputs(name) for name in READERS} | dict(readers or {})
        inputs, traces = _read(wanted, split, indices, seeds)
        answer = self.answer
        return Batch(
            inputs,
            answer.target(split, indices, traces),
            answer.known(split, indices),
            split.keys[indices],
            view,
            seen=self.inputs(STUDENT).seen(split, indices, seeds),
            trace={name: trace for name, trace in traces.items() if trace is not None},
            group=None if split.group is None else split.group[indices],
        )

    def from_loader(self, item: Any) -> Batch:
        """The batch that an item of a user's loader stands for.

        `(inputs, target)`, `(student_inputs, teacher_inputs, target)`, a mapping with the target under `target`,
        `label` or `labels`, or inputs alone, which are unlabelled. RecipeError says what else came.
        """
        inputs, target = inputs_and_target(item)
        answer = self.answer
        for reader, value in inputs.items():
            self.inputs(reader).refuse_other(reader, value)
        if target is None:
            count = len(Batch(inputs))
            return Batch(inputs, answer.missing(count), torch.zeros(count, dtype=torch.bool))
        batch = Batch(inputs, answer.given(target))
        if len(batch.target) != len(batch):
            raise RecipeError(
                f"the loader yields {len(batch)} inputs with {len(batch.target)} targets; they must agree"
            )
        labelled = answer.labelled(batch)
        if labelled.ndim > 1:  # of several places in a sample: where any is
            labelled = labelled.flatten(1).any(dim=1)
        if labelled.device.type == "cpu" and bool(labelled.all()):  # elsewhere the question would wait for the device
            return batch
        return replace(batch, labelled=labelled)

    def shaped_by(self, batch: Batch, width: int) -> Self:
        """The Task of `raw: true` with its shapes taken from a batch, and from the width of a model's logits.

        `interface` and `example` need them. Where class names are open they become "0", "1", and so on.
        """
        answer = self.answer.widths_of(width) | self.answer.shapes_of(batch.target)
        return self.with_values(self.half_inputs().shapes_of(batch.inputs), answer)

    def forward(self, network: Network, batch: Batch, needs: Needs, reader: str) -> Outputs:
        """What a network says about a batch that it reads as `reader`."""
        if needs.gradient:
            raise RecipeError(f"{self.use}: gradients to the inputs are not available for this task")
        held = batch.side(reader)
        inputs = self.inputs(reader).prepared(held)
        answer = self.answer
        target = answer.model_target(batch, reader) if needs.losses else None
        with telling(network.module, reader, inputs):
            said = with_own_inputs(
                network.module, lambda own: network.run(own[0], needs, own[1]), (inputs, target), (held, target)
            )
        return answer.outputs(said, batch, reader)

    def tallied(self, predict: Predictor, batches: Iterable[Batch], reference: Predictor | None = None) -> Scores:
        """All figures of a predictor over batches, in one pass, and its fidelity to a reference."""
        return tallied(self.answer, predict, batches, reference)

    def score(self, predict: Predictor, batches: Iterable[Batch]) -> dict[str, float]:
        """Metrics over batches in float64, the main one first; DataError where no sample is labelled."""
        found = self.tallied(predict, batches).quality
        if not found:
            raise DataError("there is no labelled sample to score on")
        return found

    def _inputs_of(self, reader: str) -> Inputs:
        found = self.half_inputs().of(reader)
        if reader == STUDENT:
            return found
        student = self.inputs(STUDENT)
        return student if found == student else found


def _read(
    wanted: Mapping[str, Inputs], split: Split, indices: np.ndarray, seeds: np.ndarray | None
) -> tuple[dict[str, Any], dict[str, Trace | None]]:
    """What each reader reads, and its trace; those that read alike share one object."""
    done: list[tuple[Inputs, Any, Trace | None]] = []
    inputs, traces = {}, {}
    for name, each in wanted.items():
        found = next((one for one in done if each.reads_as(one[0])), None)
        if found is None:
            found = each, *each.read(split, indices, seeds)
            done.append(found)
        _, inputs[name], traces[name] = found
    return inputs, traces


class Joined(Task):
    """A Task whose fields are those of its halves, flat: `class Mine(Images, Classes, Joined)` says of which classes
    these are, `reads = Images; answers = Classes`."""

    reads: ClassVar[type[Inputs]]
    answers: ClassVar[type[Answer]]

    def resolve(self, data: Dataset) -> Self:
        found = self.half_inputs().resolve_inputs(data)
        task = self.replace(**found) if found else self
        found = task.half_answer().resolve_answer(data, task.half_inputs())
        return task.replace(**found) if found else task

    def half_inputs(self) -> Inputs:
        return self.reads(**{name: getattr(self, name) for name in self.reads.model_fields})

    def half_answer(self) -> Answer:
        return self.answers(**{name: getattr(self, name) for name in self.answers.model_fields})

    def as_taught_by(self, theirs: Task) -> Task:
        own, other = self.half_inputs(), theirs.half_inputs()
        if type(self.half_answer()) is not type(theirs.half_answer()):
            return self
        if own.prepares and type(own) is type(other) and not own.raw and not other.raw:
            return theirs
        renamed = self.answer.renamed(theirs.answer.names)
        return self.with_values({}, renamed) if renamed else self

    def of_head(self, name: str) -> Self:
        raise RecipeError(f"head is {name!r}, and task {self.use} has no heads; leave it out")

    def as_given(self) -> Self:
        return self if "raw" in self.model_fields_set else self.with_values({"raw": True}, {})

    def with_values(self, inputs: Mapping[str, Any], answer: Mapping[str, Any]) -> Self:
        return self.replace(**inputs, **answer)


@dataclass(frozen=True)
class Reading:
    """A Task as one of its models meets it: how that model is asked, and what becomes a file."""

    task: Task
    reader: str

    @property
    def inputs(self) -> Inputs:
        """What this model reads."""
        return self.task.inputs(self.reader)

    @property
    def answer(self) -> Answer:
        """What it answers."""
        return self.task.answer

    @property
    def kind(self) -> InputKind:
        """What the model takes as a whole."""
        return self.inputs.kind

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes that it answers with; empty where there are none."""
        return self.answer.names

    @property
    def distribution(self) -> bool:
        """Whether it answers with a distribution over classes, or with numbers."""
        return self.answer.distribution

    @property
    def per_pixel(self) -> bool:
        """Whether the model gives maps, of which each pixel is answered."""
        return self.answer.per_pixel

    @property
    def interface(self) -> Interface:
        """What the model takes and gives."""
        inputs = self.inputs
        return Interface(
            kind=inputs.kind,
            inputs=inputs.ports(),
            outputs=self.answer.gives(inputs),
            vocabulary=inputs.vocabulary,
            padding=inputs.padding,
        )

    @property
    def outputs(self) -> dict[str, Port]:
        """What the exported program gives, by name."""
        return self.answer.shipped(self.inputs)

    def forward(self, network: Network, batch: Batch, needs: Needs) -> Outputs:
        """What a network says about a batch."""
        return self.task.forward(network, batch, needs, self.reader)

    def of(self, batch: Batch) -> Any:
        """The inputs of this reader."""
        return batch.side(self.reader)

    def preprocessing(self) -> nn.Module:
        """Raw inputs -> what the model takes."""
        return self.inputs.preprocessing()

    def program(self, model: nn.Module) -> nn.Module:
        """The main program: preprocessing ∘ model ∘ postprocessing, with plain tensors in and out."""
        return self.inputs.program(model, self.answer.postprocessing())

    def programs(self, model: nn.Module) -> dict[str, Program]:
        """All graphs that ship, by name, the main one first."""
        return {MAIN: Program(self.program(model).eval(), self.example(), self.axes(), self.outputs)}

    def example(self, batch: int = 2) -> dict[str, Tensor]:
        """Raw inputs of the program, by name, of `batch` samples (made up, right in shape and type)."""
        return self.inputs.example(batch)

    def axes(self) -> Mapping[str, Mapping[int, str]]:
        """Dynamic axes of each input: `{"image": {0: "batch"}}`."""
        return self.inputs.axes()

    def feed(self, batch: Batch) -> dict[str, np.ndarray]:
        """What an exported file takes for this batch, by input name."""
        return self.inputs.feed(self.of(batch))

    def from_file(self, arrays: Mapping[str, np.ndarray], batch: Batch) -> Outputs:
        """What an exported file said about a batch."""
        tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
        return self.answer.from_file(tensors, batch, self.reader)

    def length(self, batch: Batch) -> int | None:
        """How many places answers about a batch are padded to; None where all samples have as many."""
        return self.answer.length(batch)

    def manual(self, info: Mapping[str, Any]) -> dict[str, Any]:
        """How an exported file is called on photos, texts or rows, and what its numbers mean, as plain data.

        `info` of the data set. RecipeError where the model reads what only the program that trained it can make.
        """
        if self.inputs.raw:
            raise RecipeError("the model reads what a program of its user made (raw)")
        said = self.answer.meaning(self.inputs, info)
        answers = said if self.answer.parts else {str(said.get("output", said["answer"])): said}
        read = self.inputs.asked(info)
        if "image" in read and any(each["answer"] in WHOLE for each in answers.values()):
            read["image"]["fit"] = "stretch"
        return {"format": 1, "task": self.task.use, "kind": self.kind, **read, "answers": answers}

    def assets(self) -> dict[str, str]:
        """Text files that must ship beside the graph, by name (a tokenizer)."""
        return self.inputs.assets()
