"""Where a step's batches come from: the splits of an opened data set, or loaders that came from Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, Literal

import numpy as np

from decoct.data.base import Source, Split
from decoct.data.given import LoaderSource
from decoct.data.hashing import keyed
from decoct.data.sources import Batches, Collate, ordered
from decoct.data.splits import keep_labels
from decoct.data.views import Views
from decoct.errors import DataError, RecipeError, did_you_mean
from decoct.outputs import Batch, Predictor
from decoct.steps.base import Context
from decoct.tasks.base import Task
from decoct.tasks.inputs.base import STUDENT
from decoct.tasks.mixing.base import Mixer, Mixing

EVALUATION_BATCH = 256
EVALUATION_VALUES = 2**26
"""At most so many numbers go in and come out at once where all samples of a split are scored: maps take more."""
PREFETCH = 2


def splits_of(context: Context) -> Mapping[str, Any]:
    """The splits by name, as rows that models read: of the data set, or the loaders that stand for them."""
    given = context.data.info.get("given")
    if given is not None:
        return context.given[given]
    return {name: context.rows(split) for name, split in context.data.splits.items()}


def has_split(context: Context, name: str) -> bool:
    """Whether there is such a split with samples in it."""
    found = splits_of(context).get(name)
    return found is not None and (not isinstance(found, Split) or len(found) > 0)


def training_source(
    context: Context,
    *,
    batch_size: int,
    augment: bool,
    only: Literal["all", "labelled"],
    labels: int | None,
    mix: Mixing | None = None,
    further: int = 1,
    views: Views | None = None,
) -> Source:
    """Batches of the training split, in an order that the step's seed decides.

    Mixed where `mix` says so; with `further` - 1 more views of each sample beside it; in fixed `views`, or a new one in
    each epoch.
    """
    split = _split(context, "train")
    if not isinstance(split, Split):
        if mix is not None or further > 1 or (views is not None and views.count > 1):
            raise RecipeError("mix, views and teacher_views need a data set that decoct reads, not loaders")
        return LoaderSource(split, context.task.from_loader, seed=context.seed)
    if labels is not None:
        split = keep_labels(split, labels)
    collate: Collate = context.collate
    if mix is not None:
        seed = context.seed if views is None else views.seed
        collate = Mixer(context.task, mix, split, seed, only=only).collate
    return Batches(
        split,
        collate if further == 1 else _in_views(collate, further),
        batch_size=batch_size,
        seed=context.seed,
        augment=augment,
        only=only,
        prefetch=PREFETCH,
        views=views,
    )


def _in_views(collate: Collate, count: int) -> Collate:
    """A collate that adds `count` - 1 further views of the same samples, each with seeds of its own."""

    def collated(split: Split, indices: np.ndarray, *, seeds: np.ndarray | None = None, view: int = 0) -> Batch:
        first = collate(split, indices, seeds=seeds, view=view)
        if seeds is None:
            return first
        more = [collate(split, indices, seeds=keyed("further", number, seeds), view=view) for number in range(1, count)]
        return replace(first, views=tuple(more))

    return collated


def class_counts(context: Context, labels: int | None) -> tuple[int, ...] | None:
    """Labelled training samples of each class; None where the data have no classes or are loaders."""
    split = _split(context, "train")
    if not isinstance(split, Split) or "label" not in split.columns or not context.data.classes:
        return None
    if labels is not None:
        split = keep_labels(split, labels)
    known = split.columns["label"] if split.labelled is None else split.columns["label"][split.labelled]
    return tuple(np.bincount(known, minlength=len(context.data.classes)).tolist())


def evaluation_batches(context: Context, name: str) -> Iterator[Batch]:
    """All samples of a split, in their own order, unaugmented."""
    split = _split(context, name)
    if isinstance(split, Split):
        return ordered(split, context.collate, batch_size=evaluated_at_once(context.task))
    return (context.task.from_loader(item) for item in split)


def evaluated_at_once(task: Task) -> int:
    """Samples in a batch that is scored: 256, fewer where what goes in and comes out is large."""
    interface = task.reading(STUDENT).interface
    values = math.prod(interface.shape) if interface.kind == "image" else 0
    if interface.per_pixel:
        values += interface.width * math.prod(interface.shape[1:])
    return max(1, min(EVALUATION_BATCH, EVALUATION_VALUES // max(1, values)))


def few(context: Context, count: int, name: str = "train") -> Batch:
    """The first `count` samples of a split (of loaders, the first batch)."""
    split = _split(context, name)
    if isinstance(split, Split):
        return context.collate(split, np.arange(min(count, len(split))))
    for item in islice(split, 1):
        return context.task.from_loader(item)
    raise DataError(f"the loader of the {name} split gave no batch")


def rows_of(context: Context) -> Callable[[Batch], list[Any]]:
    """Gives the raw samples of a batch: texts, images `[H, W, C]`, rows of a table; of loaders the teacher's inputs."""
    places: dict[int, tuple[Split, int]] = {}

    def rows(batch: Batch) -> list[Any]:
        if batch.keys is None:
            return list(batch.side("teacher"))
        if not places:
            for split in splits_of(context).values():
                places.update({int(key): (split, index) for index, key in enumerate(split.keys)})
        found = [places[int(key)] for key in batch.keys]
        return [split.columns[column_of(split)][index] for split, index in found]

    return rows


def column_of(split: Split) -> str:
    """The name of the column that holds the samples themselves."""
    for name in ("text", "image", "features"):
        if name in split.columns:
            return name
    raise DataError(f"the data have {', '.join(split.columns)} and no texts, images or features")


def scores(predict: Predictor, context: Context, name: str, device: Any = "cpu") -> dict[str, float]:
    """The task's scores of a predictor on a split."""
    batches: Iterable[Batch] = (batch.to(device) for batch in evaluation_batches(context, name))
    return context.task.score(predict, batches)


def _split(context: Context, name: str) -> Any:
    splits = splits_of(context)
    if not has_split(context, name):
        raise DataError(f"the data have no samples in split {name!r}; {did_you_mean(name, splits)}")
    found = splits[name]
    return found
