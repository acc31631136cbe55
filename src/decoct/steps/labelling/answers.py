"""Labelling: which samples a store holds, cut into shards, and what a teacher says about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from decoct.data.base import Split
from decoct.data.sources import Collate
from decoct.data.splits import keep_labels
from decoct.data.views import Views, seen_of
from decoct.errors import DataError, RecipeError, did_you_mean
from decoct.outputs import Batch, Needs, Outputs, Predictor
from decoct.steps.base import Context, Inputs
from decoct.steps.labelling.settings import Labelling
from decoct.steps.learning.batches import splits_of
from decoct.steps.learning.teachers import open_teacher, open_teachers
from decoct.steps.learning.views import augmentation_of, collated, mixer_of
from decoct.store.shards import Shard, described, map_shard
from decoct.teachers.combining import COMBINED
from decoct.training.engine import Engine


@dataclass(frozen=True)
class Part:
    """Some samples of a split in one of their views."""

    split: str
    view: int
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class Piece:
    """What goes into one shard: its number, and batches of samples."""

    number: int
    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))


@dataclass(frozen=True)
class Answered:
    """What the teacher said about a batch; `seen`, `keys` uint64 and `views` uint32, all `[B]`."""

    seen: np.ndarray
    keys: np.ndarray
    views: np.ndarray
    outputs: Outputs


@dataclass(frozen=True)
class LabelViews:
    """How samples are looked at: in `views`, augmented or not."""

    views: Views
    augment: bool
    augmentation: Mapping[str, Any] | None

    def plain(self, mix: Any) -> dict[str, Any]:
        """What a store says about its views."""
        return {
            "count": self.views.count,
            "seed": self.views.seed,
            "augment": self.augment,
            "augmentation": self.augmentation,
            "mix": None if mix is None else mix.plain(),
        }


DEFAULT_VIEWS = 8


def label_views(step: Labelling, context: Context) -> LabelViews:
    """In which views the step labels: 8 by default where samples vary, one where they do not."""
    augmentation = augmentation_of(context) if step.augment else None
    augment = augmentation is not None
    varied = augment or step.mix is not None
    if step.views is not None and step.views.count > 1 and not varied:
        raise RecipeError(
            f"views is {step.views.count}, and nothing varies the samples (task.augment, mix), so that all views are "
            "the same; leave views out, or give task.augment"
        )
    return LabelViews(step.views or Views(count=DEFAULT_VIEWS if varied else 1), augment, augmentation)


def pieces_of(step: Labelling, context: Context) -> list[Piece]:
    """The shards of a store: every distinct sample of the splits in every view, in an order that their content decides.

    Texts stand by length, so that batches are padded little; no batch holds a single sample, whose answer would differ
    in its last bits.
    """
    looks, splits = label_views(step, context), _splits(step, context)
    batches = [part for name, split in splits.items() for part in _parts(name, split, step, looks)]
    if not batches:
        raise DataError(f"splits is {', '.join(step.splits)}, which hold no samples")
    return [Piece(number, tuple(parts)) for number, parts in enumerate(_groups(batches, step.shard))]


def _splits(step: Labelling, context: Context) -> dict[str, Split]:
    found = splits_of(context)
    chosen = {}
    for name in step.splits:
        if name not in found:
            raise RecipeError(f"splits: the data have no split {name!r}; {did_you_mean(name, found)}")
        split = found[name]
        chosen[name] = keep_labels(split, step.labels) if step.labels is not None and name == "train" else split
    return chosen


def _parts(name: str, split: Split, step: Labelling, looks: LabelViews) -> Iterator[Part]:
    order = _distinct(split, step)
    texts = split.columns.get("text", split.columns.get("words"))
    if texts is not None:
        lengths = np.fromiter((len(texts[i]) for i in order), np.int64, count=len(order))
        order = order[np.argsort(lengths, kind="stable")]
    several = looks.views.count if name == "train" else 1
    for view in range(several):
        for start, stop in _bounds(len(order), step.batch_size):
            yield Part(name, view, order[start:stop])


def _distinct(split: Split, step: Labelling) -> np.ndarray:
    """Indices of the first of each of the samples that are alike, in the order of their keys.

    Where they are mixed, an unlabelled sample may get another partner than a labelled one that has the same content.
    """
    groups = [np.arange(len(split))]
    if step.mix is not None and split.labelled is not None:
        groups = [np.flatnonzero(split.labelled), np.flatnonzero(~split.labelled)]
    found = np.concatenate([group[np.unique(split.keys[group], return_index=True)[1]] for group in groups])
    return found[np.argsort(split.keys[found], kind="stable")]


def _bounds(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Where batches begin and end; a last one of a single sample joins the one before."""
    starts = list(range(0, count, size))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    yield from zip(starts, [*starts[1:], count])


def _groups(parts: Sequence[Part], size: int) -> Iterator[list[Part]]:
    group: list[Part] = []
    for part in parts:
        if group and sum(map(len, group)) + len(part) > size:
            yield group
            group = []
        group.append(part)
    yield group


class Answers:
    """The teacher at work on pieces: a predictor that is open until `close`."""

    def __init__(self, step: Labelling, inputs: Inputs, context: Context, *, loader: bool = False) -> None:
        self._step, self._context = step, context
        self._looks, self._splits = label_views(step, context), {} if loader else _splits(step, context)
        self._collates = {name: self._collate(name, split) for name, split in self._splits.items()}
        self._engine = Engine(device=context.device, precision=step.precision or context.precision)
        self._stack = ExitStack()
        with torch.random.fork_rng():  # a teacher that is built fresh is the same in every worker and run
            torch.manual_seed(0)
            self._predict = self._stack.enter_context(teacher_of(step, inputs, context, self._engine))

    def __call__(self, piece: Piece) -> Iterator[Answered]:
        """What the teacher says about each batch of a piece, on the CPU."""
        for part in piece.parts:
            yield answered(self.batch(part), self.predict, part.view)

    def predict(self, batch: Batch) -> Outputs:
        """What the teacher says about a batch."""
        return self._predict(self._engine.move(batch))

    def batch(self, part: Part) -> Batch:
        """The samples of a part as training will see them."""
        split, collate = self._splits[part.split], self._collates[part.split]
        training = part.split == "train"
        if not training:
            return collate(split, part.indices)
        return collated(collate, split, part.indices, self._looks.views, part.view, augment=self._looks.augment)

    def close(self, *error: Any) -> None:
        """Ends the teacher's contract: TeacherChanged where it changed. `error` is what ended the work too soon."""
        self._stack.__exit__(*(error or (None, None, None)))

    def _collate(self, name: str, split: Split) -> Collate:
        mixer = mixer_of(self._context, self._step.mix if name == "train" else None, split, self._looks.views)
        return self._context.collate if mixer is None else mixer.collate


def teacher_of(step: Labelling, inputs: Inputs, context: Context, engine: Engine) -> Any:
    """The teacher, or all of them as one, opened under the contract as a context manager."""
    needs = Needs(features=frozenset(step.features))
    if step.combine is None:
        if len(inputs) > 1:
            raise RecipeError(f"inputs: {', '.join(inputs)} are several teachers; say how they answer: combine")
        role, value = next(iter(inputs.items()))
        return open_teacher(value, context, engine, needs, step.teachers.get(role), role=role, folds=step.folds)
    if step.features:
        raise RecipeError(
            "features: several teachers answer as one, which has no layers; leave combine or features out"
        )
    return _Combined(step, inputs, context, engine)


class _Combined:
    """A context manager: several teachers, open, heard as one."""

    def __init__(self, step: Labelling, inputs: Inputs, context: Context, engine: Engine) -> None:
        wanted = dict.fromkeys(inputs, Needs())
        self._opened = open_teachers(
            inputs, wanted, context, engine, kinds=step.teachers, combine=step.combine, folds=step.folds
        )

    def __enter__(self) -> Predictor:
        return self._opened.__enter__().teachers[COMBINED]

    def __exit__(self, *error: Any) -> None:
        self._opened.__exit__(*error)


def answered(batch: Batch, predict: Predictor, view: int = 0) -> Answered:
    """What is said about a batch, with where each sample is found, which is looked up before anybody meets it."""
    seen = seen_of(batch)
    keys = seen if batch.keys is None else batch.keys
    return Answered(seen, keys, np.full(len(seen), view, np.uint32), predict(batch))


def unanswered(batches: Iterable[Batch], folder: Path, done: Mapping[int, Shard]) -> Iterator[Batch]:
    """Those batches of a loader of which some sample is in none of the finished shards in a folder.

    So the order of the loader may be another one than in the run that was interrupted.
    """
    known = np.unique(np.concatenate([np.zeros(0, np.uint64), *(_seen(folder / each.file) for each in done.values())]))
    for batch in batches:
        if not len(known) or not np.isin(seen_of(batch), known, assume_unique=False).all():
            yield batch


def _seen(path: Path) -> np.ndarray:
    layout, _ = described(path)
    return map_shard(path, layout).seen


def loader_pieces(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """The batches of a user's loader, grouped by shard."""
    group: list[Batch] = []
    for batch in batches:
        if group and sum(map(len, group)) + len(batch) > size:
            yield group
            group = []
        group.append(batch)
    if group:
        yield group
