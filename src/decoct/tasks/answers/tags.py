"""Tags: one class for each word of a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import field_validator
from torch import Tensor

from decoct.data.base import Dataset, Split
from decoct.errors import DataError, RecipeError
from decoct.models.interface import Port
from decoct.outputs import Batch, Dense, Distribution, Factored, Outputs
from decoct.tasks.answers.base import Answer, Over, Scores, Tally, Traces, dense, in_loss_type
from decoct.tasks.answers.classes import IGNORED, refuse_other_ids
from decoct.tasks.answers.entities import Mode, entity_scores
from decoct.tasks.answers.metrics import ClassFidelity, Column, confusion_matrix, log_softmax
from decoct.tasks.inputs.base import STUDENT, Inputs, sizes_of
from decoct.tasks.inputs.words import first_pieces

OTHERS: Mapping[str, Literal["max", "min"]] = {
    "f1": "max",
    "precision": "max",
    "recall": "max",
    "token_accuracy": "max",
    "cross_entropy": "min",
}
"""All scores of tags, of which one is the main."""


class Tags(Answer):
    """One tag for each word: logits `[B, W, classes]`, target int64 `[B, W]`, -100 where it must not be used.

    W is the longest sentence of the batch. A network answers at pieces, `[B, L, classes]`; the answer of a word is that
    of its first piece. A word without a piece on any side counts nowhere. Inputs that come `raw`, from a loader, are
    answered at each of their positions, and the loader marks with -100 those that do not count.

    `classes`: O, B-TYPE and I-TYPE, from the data where left out; `entities`: how they are read from tags, default (as
    conlleval) or strict (IOB2); `metric_name`: the metric by which models are chosen, F1 of entities where left out.
    """

    item: ClassVar[str] = "word"
    target_columns: ClassVar[tuple[str, ...]] = ("tags",)

    classes: tuple[str, ...] = ()
    metric_name: Literal["f1", "token_accuracy"] | None = None
    entities: Mode = "default"

    @field_validator("classes")
    @classmethod
    def _are_tags(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            if each != "O" and (each[:2] not in ("B-", "I-") or len(each) < 3):
                raise ValueError(f"{each!r} is no tag; allowed: O, B-TYPE, I-TYPE")
        return value

    @property
    def metric(self) -> tuple[str, Literal["max", "min"]]:
        return self.metric_name or "f1", "max"

    @property
    def metrics(self) -> Mapping[str, Literal["max", "min"]]:
        return {**super().metrics, **OTHERS}

    @property
    def names(self) -> tuple[str, ...]:
        return self.classes

    def renamed(self, names: tuple[str, ...]) -> dict[str, Any]:
        return {"classes": names} if names != self.classes else {}

    def resolve_answer(self, data: Dataset, inputs: Inputs) -> dict[str, Any]:
        if inputs.raw or self.classes:
            return {}
        if not data.classes or "tags" not in data.splits["train"].columns:
            raise RecipeError("the data have no tags of words; take data such as {use: conll}")
        return {"classes": data.classes}

    def gives(self, inputs: Inputs) -> dict[str, Port]:
        if not self.classes:
            raise RecipeError("task.classes: not known; give the names of the tags, O, B-TYPE and I-TYPE")
        axes = {0: "batch", 1: "length"}
        return {"logits": Port(kind="logits", shape=(None, len(self.classes)), axes=axes)}

    def meaning(self, inputs: Inputs, info: Mapping[str, Any]) -> dict[str, Any]:
        return {"answer": "tags", "output": next(iter(self.shipped(inputs))), "classes": list(self.classes)}

    def target(self, split: Split, indices: np.ndarray, traces: Traces) -> Tensor:
        places = [trace.places for trace in traces.values() if trace is not None and trace.places is not None]
        width = max([1, *(len(split.columns["words"][index]) for index in indices)])
        tags = np.full((len(indices), width), IGNORED, np.int64)
        for row, index in enumerate(indices if "tags" in split.columns else ()):
            if split.labelled is None or split.labelled[index]:
                found = split.columns["tags"][index]
                tags[row, : len(found)] = found
        target = torch.from_numpy(tags)
        for each in places:
            target[~first_pieces(each, width)[1]] = IGNORED
        return target

    def given(self, value: Any) -> Tensor:
        target = torch.as_tensor(value)
        if target.is_floating_point() or target.ndim != 2:
            raise RecipeError(
                f"the loader's target is {target.dtype} {list(target.shape)}; expected ids of tags, int64 [batch, "
                "length], -100 where a position does not count"
            )
        target = target.long()
        if self.classes:
            refuse_other_ids(target, len(self.classes))
        return target

    def missing(self, count: int) -> Tensor:
        return torch.full((count, 1), IGNORED)

    def outputs(self, said: Outputs, batch: Batch, reader: str) -> Outputs:
        said = positions_checked(said, len(self.classes))
        trace = batch.trace.get(reader)
        if trace is not None:
            assert said.distribution is not None
            at, there = first_pieces(trace.places, self.length(batch))
            said = replace(said, distribution=_at_words(said.distribution, at, there))
        return replace(said, mask=self.kept(batch, "items", reader))

    def length(self, batch: Batch) -> int:
        if batch.trace:
            return int(batch.target.shape[1])
        return sizes_of(next(iter(batch.inputs.values())))[0]

    def places_in(self, split: Split) -> float:
        return sum(map(len, split.columns["words"])) / len(split) if "words" in split.columns else 1.0

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        assert outputs.logits is not None
        logits = in_loss_type(outputs.logits)
        labelled = self._over(batch, logits, self.labelled(batch))
        target = torch.where(labelled, batch.target, IGNORED)
        total = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORED, reduction="sum")
        return total / labelled.sum().clamp(min=1)

    def kept(self, batch: Batch, over: Over, reader: str = STUDENT) -> Tensor | None:
        if over == "labelled":
            return self.labelled(batch)
        if not batch.trace:
            inputs = batch.inputs.get(reader)
            return inputs["attention_mask"] != 0 if isinstance(inputs, Mapping) and "attention_mask" in inputs else None
        length = self.length(batch)
        traces = batch.trace.values() if reader == STUDENT else (batch.trace[reader],)
        return torch.stack([first_pieces(trace.places, length)[1] for trace in traces]).all(dim=0)

    def labelled(self, batch: Batch) -> Tensor:
        counted: Tensor = batch.target != IGNORED
        return counted if batch.labelled is None else counted & batch.labelled.unsqueeze(-1)

    def zeros(self, batch: Batch) -> Outputs:
        logits = torch.zeros(len(batch), self.length(batch), max(1, len(self.classes)))
        return Outputs(Dense(logits), mask=self.kept(batch, "items"))

    def from_file(self, arrays: Mapping[str, Tensor], batch: Batch, reader: str) -> Outputs:
        return self.outputs(Outputs(Dense(next(iter(arrays.values())))), batch.to("cpu"), reader)

    def tally(self) -> Tally:
        return TagTally(self)

    def widths_of(self, width: int) -> dict[str, Any]:
        if len(self.classes) != width:
            raise RecipeError(
                f"task.classes: {len(self.classes)} names, the model gives {width} logits at each position; give as "
                "many, O, B-TYPE and I-TYPE"
            )
        return {}

    def _over(self, batch: Batch, logits: Tensor, labelled: Tensor) -> Tensor:
        """`labelled` for each place of the logits `[B, W, C]`; RecipeError where the target has others."""
        places = tuple(logits.shape[:2])
        if tuple(labelled.shape) not in (places, (places[0], 1)):
            raise RecipeError(f"logits {list(logits.shape)} and tags {list(labelled.shape)} differ in places")
        return labelled.expand(places)


class TagTally(Tally):
    """F1 of entities, accuracy of tags and cross-entropy over labelled words; agreement and KL to a reference over all
    words that both answer. Kept are the tags, and two numbers of each word that is compared."""

    def __init__(self, answer: Tags) -> None:
        self._answer = answer
        self._true, self._predicted, self._lengths = Column(np.int16), Column(np.int16), Column(np.int64)
        self._likelihood, self._fidelity = 0.0, ClassFidelity()

    def add(self, batch: Batch, said: Outputs, reference: Outputs | None = None) -> None:
        logits = dense(said)
        counted = self._answer.labelled(batch).cpu().numpy()
        counted = np.broadcast_to(counted, logits.shape[:2])
        log_q = log_softmax(logits[counted])
        true = np.broadcast_to(batch.target.cpu().numpy(), logits.shape[:2])[counted]
        self._true.add(true)
        self._predicted.add(log_q.argmax(axis=1))
        self._lengths.add(counted.sum(axis=1))
        self._likelihood += float(log_q[np.arange(len(true)), true].sum())
        if reference is not None:
            masks = [each.mask.cpu().numpy() for each in (said, reference) if each.mask is not None]
            kept = np.logical_and.reduce([np.ones(logits.shape[:2], bool), *masks])
            theirs = dense(reference)
            if theirs.shape != logits.shape:
                raise RecipeError(f"logits {list(logits.shape)} and the reference's {list(theirs.shape)} differ")
            self._fidelity.add(logits[kept], theirs[kept])

    def scores(self) -> Scores:
        fidelity = self._fidelity.scores()
        if not self._true.count:
            if fidelity:
                return Scores({}, fidelity)
            raise DataError("there is no labelled word to score on")
        names, true, predicted = self._answer.classes, self._true.all(), self._predicted.all()
        found, types = entity_scores(self._sequences(true), self._sequences(predicted), self._answer.entities)
        quality = {
            **found,
            "token_accuracy": float((true == predicted).mean()),
            "cross_entropy": -self._likelihood / len(true),
        }
        main = self._answer.metric[0]
        matrix = confusion_matrix(predicted.astype(np.int64), true.astype(np.int64), len(names))
        return Scores({main: quality.pop(main), **quality}, fidelity, types, (names, matrix))

    def _sequences(self, tags: np.ndarray) -> list[list[str]]:
        """The tags' names, sentence by sentence."""
        lengths = self._lengths.all()
        ends = np.cumsum(lengths)
        return [[self._answer.classes[i] for i in tags[end - size : end]] for size, end in zip(lengths, ends) if size]


def positions_checked(said: Outputs, width: int) -> Outputs:
    """The outputs; RecipeError unless logits are `[B, L, width]` (any width where it is 0)."""
    found = said.distribution
    shape = None
    if isinstance(found, Dense):
        shape = tuple(found.logits.shape)
    elif isinstance(found, Factored):
        shape = (*found.hidden.shape[:-1], len(found.head.weight))
    if shape is None or len(shape) != 3 or (width and shape[2] != width):
        raise RecipeError(
            f"the model returned logits {None if shape is None else list(shape)}; expected [batch, length, "
            f"{width or 'classes'}]"
        )
    return said


def _at_words(said: Distribution, at: Tensor, there: Tensor) -> Distribution:
    """What was said at the pieces `at` `[B, W]`; zeros where there is none."""

    def picked(values: Tensor) -> Tensor:
        found = values.gather(1, at.to(values.device).unsqueeze(-1).expand(-1, -1, values.shape[-1]))
        return torch.where(there.to(values.device).unsqueeze(-1), found, 0.0)

    if isinstance(said, Factored):
        return replace(said, hidden=picked(said.hidden))
    assert isinstance(said, Dense)
    return Dense(picked(said.logits))
