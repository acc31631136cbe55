"""Several: data sets of one kind of sample side by side, each with targets for a head of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from decoct.data.base import Data, Dataset, Split
from decoct.data.lazy import LazyColumn
from decoct.data.splits import assemble
from decoct.errors import DataError
from decoct.spec import Choice

TARGETS = ("label", "value")
HEADS = "heads"
"""Under this name a data set says the classes of each head."""


class Several(Data):
    """Data sets side by side; the samples of each have targets for the head of its name alone.

    `sets`: by head a data set, `{digit: {use: mnist}, garment: {use: fashion_mnist}}`. Their samples must be of one
    kind (images of one size, texts, rows of equal columns). `labels`, `validation` and `limit` are said of each set.
    """

    use: ClassVar[str] = "several"
    sets: dict[str, Annotated[Data, Choice("decoct.data")]] = Field(min_length=1)

    @model_validator(mode="after")
    def _said_of_sets(self) -> Self:
        for name in ("path", "labels", "limit"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is said of each of the sets: sets.{next(iter(self.sets))}.{name}")
        return self

    def open(self, *, offline: bool = False) -> Dataset:
        opened = {head: data.open(offline=offline) for head, data in self.sets.items()}
        names = list(dict.fromkeys(name for each in opened.values() for name in each.splits))
        splits = {name: _joined({h: d.splits[name] for h, d in opened.items() if name in d.splits}) for name in names}
        info = {HEADS: {head: each.classes for head, each in opened.items()}}
        return assemble(self, splits, features=next(iter(opened.values())).features, info=info)


def _joined(splits: Mapping[str, Split]) -> Split:
    """All samples; the target of head h is the column "label.h", -100 (numbers: NaN) for samples of other sets."""
    kinds = {head: sorted(set(split.columns) - set(TARGETS)) for head, split in splits.items()}
    if len({tuple(each) for each in kinds.values()}) > 1:
        raise DataError(f"sets: their samples are of unlike kinds: {', '.join(f'{h} {k}' for h, k in kinds.items())}")
    columns: dict[str, Any] = {name: _column(name, splits) for name in next(iter(kinds.values()))}
    total = sum(map(len, splits.values()))
    start = 0
    for head, split in splits.items():
        for target in TARGETS:
            if target in split.columns:
                columns[f"{target}.{head}"] = _target(split, target, start, total)
        start += len(split)
    return Split(columns, np.concatenate([split.keys for split in splits.values()]))


def _column(name: str, splits: Mapping[str, Split]) -> Any:
    parts = [np.asarray(c) if isinstance(c := split.columns[name], LazyColumn) else c for split in splits.values()]
    if not all(isinstance(part, np.ndarray) for part in parts):
        return [each for part in parts for each in part]
    shapes = {head: split.columns[name].shape[1:] for head, split in splits.items()}
    if len(set(shapes.values())) > 1:
        told = ", ".join(f"{head} {list(shape)}" for head, shape in shapes.items())
        raise DataError(f"sets: {name} has unlike shapes ({told}); bring them to one")
    return np.concatenate(parts)


def _target(split: Split, name: str, start: int, total: int) -> np.ndarray:
    own = np.asarray(split.columns[name])
    full = np.full((total, *own.shape[1:]), -100 if name == "label" else np.nan, own.dtype)
    if split.labelled is not None:
        own = np.where(split.labelled.reshape(-1, *(1 for _ in own.shape[1:])), own, full[: len(own)])
    full[start : start + len(own)] = own
    return full
