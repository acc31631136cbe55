"""Heads: several answers of one network, each with targets of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from decoct.data.base import Dataset, Split
from decoct.data.remember import Remembered
from decoct.data.several import HEADS
from decoct.errors import RecipeError, did_you_mean
from decoct.models.calls import Postprocessing, outputs_of
from decoct.models.interface import Interface, Port
from decoct.outputs import Batch, Needs, Outputs
from decoct.spec import Choice
from decoct.store.codecs.base import Codec
from decoct.tasks.answers.base import Answer, Over, Scores, Tally, Traces
from decoct.tasks.inputs.base import Inputs

MEAN = "mean"
"""The main metric of several heads: the mean of theirs."""

_SPLITS: Remembered[Split] = Remembered()


class Heads(Answer):
    """Several answers of one network, by name; a sample may have targets for some of them.

    Target, `labelled` and outputs are mappings by head. The loss is the mean over all labelled items of all heads, so
    that a head counts as often as it has labels. Scores are called "HEAD.METRIC"; the main one is their mean.
    """

    heads: dict[str, Annotated[Answer, Choice("decoct.tasks.answers")]] = Field(min_length=1)

    @property
    def metric(self) -> tuple[str, Literal["max", "min"]]:
        directions = {name: answer.metric[1] for name, answer in self.heads.items()}
        if len(set(directions.values())) > 1:
            told = ", ".join(f"{name} {answer.metric[0]}" for name, answer in self.heads.items())
            raise RecipeError(f"task.heads: more is better for one and less for another ({told}); take them apart")
        return MEAN, next(iter(directions.values()))

    @property
    def metrics(self) -> Mapping[str, Literal["max", "min"]]:
        return {**super().metrics, **_named({name: answer.metrics for name, answer in self.heads.items()})}

    @property
    def parts(self) -> Mapping[str, Answer]:
        return self.heads

    def head(self, name: str) -> Answer:
        if name not in self.heads:
            raise RecipeError(f"head is {name!r}; {did_you_mean(name, self.heads)}")
        return self.heads[name]

    @property
    def needs(self) -> Needs:
        found = Needs()
        for answer in self.heads.values():
            found = found | answer.needs
        return found

    def resolve_answer(self, data: Dataset, inputs: Inputs) -> dict[str, Any]:
        found = {name: answer.resolve_answer(head_data(data, name), inputs) for name, answer in self.heads.items()}
        if not any(found.values()):
            return {}
        return {"heads": {name: answer.replace(**found[name]) for name, answer in self.heads.items()}}

    def gives(self, inputs: Inputs) -> dict[str, Port]:
        return {name: _only(name, answer.gives(inputs)) for name, answer in self.heads.items()}

    def shipped(self, inputs: Inputs) -> dict[str, Port]:
        return {name: _only(name, answer.shipped(inputs)) for name, answer in self.heads.items()}

    def postprocessing(self) -> Postprocessing | None:
        return HeadsOfProgram(self)

    def meaning(self, inputs: Inputs, info: Mapping[str, Any]) -> dict[str, Any]:
        return {name: {**each.meaning(inputs, info), "output": name} for name, each in self.heads.items()}

    def has_target(self, split: Split) -> bool:
        return any(answer.has_target(head_split(split, name)) for name, answer in self.heads.items())

    def known(self, split: Split, indices: np.ndarray) -> Any:
        return {name: answer.known(head_split(split, name), indices) for name, answer in self.heads.items()}

    def target(self, split: Split, indices: np.ndarray, traces: Traces) -> Any:
        return {name: answer.target(head_split(split, name), indices, traces) for name, answer in self.heads.items()}

    def given(self, value: Any) -> Any:
        if not isinstance(value, Mapping) or set(value) != set(self.heads):
            raise RecipeError(f"the loader's target must be a mapping with {', '.join(self.heads)}")
        return {name: answer.given(value[name]) for name, answer in self.heads.items()}

    def missing(self, count: int) -> Any:
        return {name: answer.missing(count) for name, answer in self.heads.items()}

    def outputs(self, raw: Outputs, batch: Batch, reader: str) -> Outputs:
        (first, *more) = self.heads
        found = raw.heads if more else {first: replace(raw, features={})}
        heads = {name: answer.outputs(found[name], batch, reader) for name, answer in self.heads.items()}
        return replace(raw, distribution=None, heads=heads)

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        total: Tensor | None = None
        count: Tensor | int = 0
        for name, answer in self.heads.items():
            own = batch.of_head(name)
            items = answer.items(own)
            value = answer.loss(outputs.heads[name], own) * items
            total = value if total is None else total + value
            count = count + items
        assert total is not None
        return total / (count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1))

    def kept(self, batch: Batch, over: Over, reader: str = "student") -> Tensor | None:
        return None

    def labelled(self, batch: Batch) -> Tensor:
        every = [answer.labelled(batch.of_head(name)) for name, answer in self.heads.items()]
        return torch.stack([each.flatten(1).any(1) if each.ndim > 1 else each for each in every]).any(0)

    def items(self, batch: Batch) -> Tensor | int:
        return sum((answer.items(batch.of_head(name)) for name, answer in self.heads.items()), start=0)

    def zeros(self, batch: Batch) -> Outputs:
        return Outputs(heads={name: answer.zeros(batch.of_head(name)) for name, answer in self.heads.items()})

    def codec(self, keep: Codec) -> Codec:
        raise RecipeError("a store keeps the answers of one head; label with a teacher that has one")

    def from_file(self, arrays: Mapping[str, Tensor], batch: Batch, reader: str) -> Outputs:
        heads = {n: answer.from_file({n: arrays[n]}, batch, reader) for n, answer in self.heads.items()}
        return Outputs(heads=heads)

    def tally(self) -> Tally:
        return HeadsTally(self)


class HeadsTally(Tally):
    """The scores of each head under its name, and their mean; of a network with some of the heads, those."""

    def __init__(self, answer: Heads) -> None:
        self._answer = answer
        self._tallies = {name: each.tally() for name, each in answer.heads.items()}
        self._answered: set[str] = set()

    def add(self, batch: Batch, raw: Outputs, reference: Outputs | None = None) -> None:
        for name, tally in self._tallies.items():
            if name in raw.heads:
                other = None if reference is None else reference.heads.get(name)
                tally.add(batch.of_head(name), raw.heads[name], other)
        self._answered |= set(raw.heads)

    def scores(self) -> Scores:
        found = {name: tally.scores() for name, tally in self._tallies.items() if name in self._answered}
        mains = [each.quality[self._answer.heads[name].metric[0]] for name, each in found.items() if each.quality]
        quality = {MEAN: float(np.mean(mains))} if mains else {}
        return Scores(
            quality | _named({name: each.quality for name, each in found.items()}),
            _named({name: each.fidelity for name, each in found.items()}),
            _named({name: each.per_class for name, each in found.items()}),
        )


class HeadsOfProgram(nn.Module):
    """What a network returned -> the outputs of all heads, in their order."""

    def __init__(self, answer: Heads) -> None:
        super().__init__()
        self._parts = [answer.postprocessing() for answer in answer.heads.values()]
        self._interface = Interface(kind="image", outputs={n: _logits(a) for n, a in answer.heads.items()})
        self._names = tuple(answer.heads)
        self.modules_of_heads = nn.ModuleList([part for part in self._parts if isinstance(part, nn.Module)])

    def forward(self, raw: Any) -> Any:
        found = outputs_of(raw, self._interface)
        heads = found.heads if len(self._names) > 1 else {self._names[0]: found}
        parts = [heads[name].logits for name in self._names]
        answers = tuple(part if change is None else change(part) for part, change in zip(parts, self._parts))
        return answers if len(answers) > 1 else answers[0]


def _logits(answer: Answer) -> Port:
    zeros = answer.zeros(Batch({"student": torch.zeros(1, 1)})).logits
    assert zeros is not None, "heads answer with logits"
    return Port(kind="logits", shape=tuple(zeros.shape[1:]))


def _only(name: str, ports: Mapping[str, Port]) -> Port:
    if len(ports) != 1:
        raise RecipeError(f"task.heads.{name}: it gives {', '.join(ports)}; a head gives one output")
    return next(iter(ports.values()))


def _named(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{head}.{name}": value for head, each in found.items() for name, value in each.items()}


def head_split(split: Split, head: str) -> Split:
    """The split as one head sees it: columns "label.HEAD" are its "label", labelled where it is known."""
    return _SPLITS.get(split, head, lambda: _head_split(split, head))


def _head_split(split: Split, head: str) -> Split:
    own = {name.removesuffix(f".{head}"): each for name, each in split.columns.items() if name.endswith(f".{head}")}
    columns = {name: each for name, each in split.columns.items() if "." not in name} | own
    known = np.ones(len(split), bool) if split.labelled is None else split.labelled
    if "label" in own:
        known = known & (np.asarray(own["label"]) >= 0)
    if "value" in own:
        known = known & ~np.isnan(np.asarray(own["value"]).reshape(len(split), -1)).any(1)
    return replace(split, columns=columns, labelled=known)


def head_data(data: Dataset, head: str) -> Dataset:
    """The data set as one head sees it."""
    classes = data.info.get(HEADS, {})
    if classes and head not in classes:
        raise RecipeError(f"task.heads: {head!r} has no data; {did_you_mean(head, classes)}")
    splits = {name: head_split(split, head) for name, split in data.splits.items()}
    return replace(data, splits=splits, classes=tuple(classes.get(head, data.classes)))
