"""Label: a teacher says once what it thinks of every sample, and a store keeps it."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from decoct.artifact import Artifact, writing
from decoct.data.base import Split
from decoct.errors import DataError, RecipeError, TeacherChanged
from decoct.models.base import Model, identity
from decoct.outputs import Factored, Needs, Outputs
from decoct.steps.base import Context, Inputs
from decoct.steps.labelling.again import refuse_another, same_store
from decoct.steps.labelling.answers import (
    Answered,
    Answers,
    Piece,
    answered,
    label_views,
    loader_pieces,
    pieces_of,
    unanswered,
)
from decoct.steps.labelling.settings import Labelling
from decoct.steps.learning.batches import splits_of
from decoct.steps.learning.folds import Folds
from decoct.steps.learning.memorised import warn_of_memorised, worth_a_look
from decoct.steps.learning.teachers import folds_by, open_teachers, own_readers, task_of
from decoct.store.codecs.base import Codec
from decoct.store.finish import salvage, seal
from decoct.store.layout import Layout
from decoct.store.shards import Shard, finished, packed, put, shard_name
from decoct.store.sizes import ROW_BYTES, refuse_small_disk, summary
from decoct.teachers.combining import Combination
from decoct.teachers.remote.jobs import run_jobs
from decoct.threads import in_threads
from decoct.training.engine import Engine

if TYPE_CHECKING:
    from decoct.data.base import Dataset
    from decoct.tasks.base import Task


class Label(Labelling):
    """Writes what a teacher says about every sample, once; the store is a teacher like any other.

    `keep`: how logits are kept, `{use: dense, dtype: float16}` or `{use: top_k, k: 64, tail: bucket}`; `features`:
    paths of layers whose outputs are kept too, in `features_dtype`; `splits`: of which splits the samples are; `views`:
    in how many fixed augmented views each training sample is labelled (8 where the task augments, else 1); `mix`: how
    two images become one view; `labels` as in the step that will train (it matters for `mix` alone). Several teachers
    answer as `combine` says. `folds`: in how many an estimator answers the rows that it was fitted on, each by a fit
    that has not seen it (5 by default, 1: by itself). `workers` processes of `threads` threads label side by side, or
    so many actors of a Ray cluster with `ray`: "local" starts one here, an address joins one. Shards hold about `shard`
    samples; a killed run goes on with the next.
    """

    use: ClassVar[str] = "label"

    def run(self, inputs: Inputs, context: Context) -> Artifact:
        """Labels what is not labelled yet; whole shards of the same store in `context.folder` are used again."""
        context = replace(context, readers=own_readers(inputs, context.task))
        self.codec(context.task)
        described = self._described(inputs, context)
        for each in self._folds(inputs, context).values():  # once, before any worker asks for them
            each.answers(context)
        self._look(inputs, context)
        shards = context.work / "shards"
        if same_store(context.folder, described):
            salvage(context.folder, shards)
        done = finished(shards)
        made = self._from_loader if _is_loader(context, self.splits) else self._from_splits
        try:
            done |= made(inputs, context, shards, done)
        except TeacherChanged:  # none of its shards is to be used
            shutil.rmtree(shards, ignore_errors=True)
            raise
        with writing(
            context.folder, kind="store", name=context.name, key=context.key, lineage=context.lineage, meta=described
        ) as draft:
            found = seal(draft, shards, done, described)
            draft.meta["statistics"] = found
            draft.meta["summary"] = summary(found, described)
            figures = {"kl_lost": found["kl"], "kept_mass": found["kept_mass"], "bytes": found["bytes"]}
            draft.scores.update({name: float(value) for name, value in figures.items() if value is not None})
            draft.write_json("task.json", _task(inputs, context, self.combine).plain())
        return Artifact.load(context.folder, verify=False)

    def _look(self, inputs: Inputs, context: Context) -> None:
        """Warns of estimators that memorised what they are asked; asking networks twice would cost too much."""
        if not worth_a_look(context) or "train" not in self.splits:
            return
        engine = Engine(context.device, self.precision or context.precision)
        wanted = {role: Needs() for role, value in inputs.items() if _is_estimator(value)}
        if not wanted:
            return
        with (
            torch.random.fork_rng(),
            open_teachers(inputs, wanted, context, engine, kinds=self.teachers, folds=self.folds) as found,
        ):
            warn_of_memorised(inputs, found.teachers, context, engine)

    def codec(self, task: Task) -> Codec:
        """How the answers are kept: predicted numbers as they are. RecipeError where `keep` says otherwise."""
        return task.answer.codec(self.keep)

    def refuse_another(self, inputs: Inputs, context: Context) -> None:
        """RecipeError where `context.folder` holds anything but a store of the same teacher, data and settings."""
        if context.folder.exists():
            refuse_another(context.folder, self._described(inputs, context))

    def _described(self, inputs: Inputs, context: Context) -> dict[str, Any]:
        """What the store is made from; two stores that differ in it are never mixed."""
        looks = label_views(self, context)
        folds = {role: each.count for role, each in self._folds(inputs, context).items()}
        teacher = {role: _fingerprint(value) for role, value in inputs.items()}
        return {
            "version": self.version,
            "teacher": {
                "fingerprint": next(iter(teacher.values()))
                if len(teacher) == 1
                else json.dumps(teacher, sort_keys=True),
                "how": {role: each.keyed() for role, each in self.teachers.items()},
                "combine": None if self.combine is None else self.combine.plain(),
                "precision": self.precision or context.precision,
            },
            "preprocessing": _task(inputs, context, self.combine).digest(),
            "data": context.data.fingerprint,
            "splits": list(self.splits),
            "classes": list(context.task.answer.names),
            "views": looks.plain(self.mix),
            "keep": self.keep.plain(),
            "features": list(self.features),
            "features_dtype": self.features_dtype if self.features else "float16",
            "labels": self.labels if self.mix is not None else None,
            "batch_size": self.batch_size,
            "shard": self.shard,
            **({"folds": folds} if folds else {}),
        }

    def _folds(self, inputs: Inputs, context: Context) -> dict[str, Folds]:
        """By role the folds in which estimators among the teachers answer."""
        kinds = self.teachers
        found = {role: folds_by(each, context, kinds.get(role), self.folds, role=role) for role, each in inputs.items()}
        return {role: each for role, each in found.items() if each is not None}

    def _from_splits(
        self, inputs: Inputs, context: Context, folder: Path, done: Mapping[int, Shard]
    ) -> dict[int, Shard]:
        pieces = pieces_of(self, context)
        waiting = [piece for piece in pieces if piece.number not in done]
        total = sum(map(len, pieces))
        self._refuse_small_disk(context, sum(map(len, waiting)))
        made: dict[int, Shard] = {}
        count = total - sum(map(len, waiting))
        sizes = {piece.number: len(piece) for piece in waiting}
        context.progress(count, total, "labelling")
        for shard, content in self._packed(waiting, inputs, context, count, total):
            put(folder, shard, content)
            made[shard.number] = shard
            count += sizes[shard.number]
            context.progress(count, total, "labelling")
        return made

    def _packed(
        self, pieces: list[Piece], inputs: Inputs, context: Context, done: int, total: int
    ) -> Iterator[tuple[Shard, bytes]]:
        if not pieces:
            return
        if self.workers == 1 and self.ray is None:
            begun = [done]

            def count_up(count: int) -> None:
                begun[0] += count
                context.progress(begun[0], total, "labelling")

            with in_threads(self.threads), _Packer(self, inputs, context, count_up) as packer:
                for piece in pieces:
                    yield packer.shard(piece)
            return
        apart = replace(context, progress=_silent)
        factory = partial(_Packer, self, inputs, apart)
        for _, answer in self._jobs(pieces, factory):
            yield _unpacked(answer)

    def _jobs(self, pieces: list[Piece], factory: Callable[[], _Packer]) -> Iterable[tuple[int, bytes]]:
        if self.ray is None:
            threads = self.threads or max(1, torch.get_num_threads() // self.workers)
            return run_jobs(pieces, factory, workers=self.workers, threads=threads)
        from decoct.teachers.remote.on_ray import run_jobs_on_ray

        address = None if self.ray == "local" else self.ray
        return run_jobs_on_ray(pieces, factory, workers=self.workers, threads=self.threads or 1, address=address)

    def _from_loader(
        self, inputs: Inputs, context: Context, folder: Path, done: Mapping[int, Shard]
    ) -> dict[int, Shard]:
        if self.workers > 1 or self.ray is not None:
            raise RecipeError(f"workers is {self.workers}, and the data come from a loader, which one process reads")
        (name,) = self.splits
        batches = (context.task.from_loader(item) for item in splits_of(context)[name])
        made: dict[int, Shard] = {}
        numbers = (number for number in itertools.count() if number not in done)
        with in_threads(self.threads), _Packer(self, inputs, context, loader=True) as packer:
            for group in loader_pieces(unanswered(batches, folder, done), self.shard):
                shard, content = packer.of_batches(next(numbers), group)
                put(folder, shard, content)
                made[shard.number] = shard
                context.progress(0, 0, f"{len(done) + len(made)} shards")
        if not made and not done:
            raise DataError("the loader gave no batch; is it empty, or a generator that was used up?")
        return made

    def estimate(self, data: Dataset, task: Task) -> tuple[int, int] | None:
        """Samples times views, and bytes on the disk, before anything ran; features and None (loaders) aside."""
        context = Context(task=task, data=data, name=self.name, folder=Path(), work=Path(), seed=0)
        if _is_loader(context, self.splits):
            return None
        port = next(iter(task.reading("teacher").outputs.values()))
        fixed = math.prod(size or 1 for size in port.shape[:-1])
        places = {name: fixed * task.answer.places_in(split) for name, split in splits_of(context).items()}
        parts = [part for piece in pieces_of(self, context) for part in piece.parts]
        rows = sum(map(len, parts))
        answers = sum(len(part) * places[part.split] for part in parts)
        return rows, round(answers * self.codec(task).width(port.width or 1)) + rows * ROW_BYTES

    def _refuse_small_disk(self, context: Context, rows: int) -> None:
        found = self.estimate(context.data, context.task)
        if found is not None and found[0] and rows:
            refuse_small_disk(context.folder, found[1] * rows // found[0], self.name)


class _Packer:
    """Turns pieces into shards; the teacher is open until the body ends."""

    def __init__(
        self,
        step: Label,
        inputs: Inputs,
        context: Context,
        count_up: Callable[[int], None] | None = None,
        *,
        loader: bool = False,
    ) -> None:
        self._step, self._context, self._count_up = step, context, count_up
        self._answers = Answers(step, inputs, context, loader=loader)
        self._codec = step.codec(context.task)
        self._classes = context.task.answer.distribution

    def __call__(self, piece: Piece) -> bytes:
        shard, content = self.shard(piece)
        record = json.dumps(shard.plain()).encode()
        return len(record).to_bytes(8, "little") + record + content

    def shard(self, piece: Piece) -> tuple[Shard, bytes]:
        return self._packed(piece.number, self._answers(piece))

    def of_batches(self, number: int, batches: list[Any]) -> tuple[Shard, bytes]:
        return self._packed(number, (answered(batch, self._answers.predict) for batch in batches))

    def __enter__(self) -> _Packer:
        return self

    def __exit__(self, *error: Any) -> None:
        self._answers.close(*error)

    def _packed(self, number: int, found: Iterable[Answered]) -> tuple[Shard, bytes]:
        rows, layout = [], None
        for index, each in enumerate(found):
            outputs = self._kept(each.outputs)
            layout = layout or Layout.of(outputs, self._codec)
            rows.append(
                layout.encode(
                    outputs, seen=each.seen, keys=each.keys, views=each.views, measure=self._classes and index == 0
                )
            )
            if self._count_up is not None:
                self._count_up(len(each.seen))
        assert layout is not None
        return packed(shard_name(number), rows, layout)

    def _kept(self, outputs: Outputs) -> Outputs:
        """Outputs on the CPU, features in their type; what is factored stays where its logits are to be made."""
        dtype = getattr(torch, self._step.features_dtype)
        features = {name: _cast(each.cpu(), dtype, name) for name, each in outputs.features.items()}
        factored = outputs.distribution if isinstance(outputs.distribution, Factored) else None
        rest = replace(outputs, features={}, distribution=None if factored else outputs.distribution).map(Tensor.cpu)
        return replace(rest, features=features, distribution=factored or rest.distribution)


def _is_estimator(value: Any) -> bool:
    return isinstance(value, Artifact) and value.kind == "estimator"


def _cast(feature: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """A feature as it is kept; DataError where finite numbers would become infinite."""
    kept = feature.to(dtype)
    if dtype == torch.float16 and not bool(kept.isfinite().all()) and bool(feature.isfinite().all()):
        raise DataError(
            f"features: {name} reaches {feature.abs().max():.3g}, more than float16 holds; give features_dtype: float32"
        )
    return kept


def _unpacked(answer: bytes) -> tuple[Shard, bytes]:
    size = int.from_bytes(answer[:8], "little")
    return Shard(**json.loads(answer[8 : 8 + size])), answer[8 + size :]


def _silent(done: float, total: float, text: str) -> None:
    """Progress of a worker: its pieces are counted where they arrive."""


def _is_loader(context: Context, names: tuple[str, ...]) -> bool:
    splits = splits_of(context)
    loaders = [name for name in names if name in splits and not isinstance(splits[name], Split)]
    if loaders and len(names) > 1:
        raise RecipeError(f"splits is {', '.join(names)}, and the data are loaders; label one split at a time")
    return bool(loaders)


def _task(inputs: Inputs, context: Context, combine: Combination | None) -> Task:
    """The task whose classes the store's logits stand for."""
    task = context.task
    if combine is None:
        return task_of(next(iter(inputs.values())), task)
    names = task.answer.names
    known = {name for value in inputs.values() for name in task_of(value, task).answer.names}
    classes = tuple(name for name in names if name in known)
    return task if classes == names else task.with_values({}, task.answer.renamed(classes))


def _fingerprint(value: Any) -> str:
    """What a teacher is known by: the content of an artifact, the Spec of a model."""
    if isinstance(value, Artifact):
        return value.hash
    assert isinstance(value, Model)
    return identity(value)
