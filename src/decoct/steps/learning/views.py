"""In which views a step sees its samples: those of its stored teachers, its own fixed ones, or new ones each epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from decoct.artifact import Artifact
from decoct.data.base import Split
from decoct.data.sources import Collate
from decoct.data.splits import keep_labels
from decoct.data.views import Views
from decoct.errors import DataError, RecipeError
from decoct.steps.base import Context, Inputs
from decoct.steps.learning.batches import few, splits_of
from decoct.store.reading import Store
from decoct.tasks.inputs.base import STUDENT
from decoct.tasks.mixing.base import Mixer, Mixing

if TYPE_CHECKING:
    from decoct.outputs import Batch
    from decoct.steps.learning.settings import Learning

STORE = "store"
"""The kind of an artifact that holds soft labels."""


def stores_of(inputs: Inputs) -> dict[str, Artifact]:
    """The inputs that are soft-label stores, by role."""
    return {role: each for role, each in inputs.items() if isinstance(each, Artifact) and each.kind == STORE}


def teaching_stores(inputs: Inputs) -> dict[str, Artifact]:
    """The soft-label stores among the inputs; RecipeError where one of them is what is to be trained."""
    found = stores_of(inputs)
    if "model" in found:
        raise RecipeError(
            f"model: {found['model'].folder} is a soft-label store, which answers but cannot be trained; use it as a "
            "teacher"
        )
    return found


def augmentation_of(context: Context) -> Mapping[str, Any] | None:
    """How the task varies its samples; None where it does not."""
    task = context.task
    return task.inputs(STUDENT).variation


def views_of(step: Learning, inputs: Inputs, context: Context) -> Views | None:
    """The fixed views in which the step draws its samples; None for new ones each epoch.

    RecipeError where a store among the inputs holds other views than the step asks for.
    """
    return views_with(step, {role: each.meta for role, each in stores_of(inputs).items()}, context)


def views_with(step: Learning, stores: Mapping[str, Mapping[str, Any]], context: Context) -> Views | None:
    """`views_of` where of each store only `views` and `labels` of its description are known, written or not."""
    views = step.views
    if views is not None and views.count > 1 and not step.augment and step.mix is None:
        raise RecipeError(f"views is {views.count} and augment false: all views are the same; leave one of them out")
    if stores and step.teacher_views > 1:
        raise RecipeError(
            f"teacher_views is {step.teacher_views}, and {', '.join(stores)} is a store, which answers about the view "
            "that the student sees alone; leave teacher_views out"
        )
    for role, store in stores.items():
        kept = store["views"]
        theirs = Views(count=kept["count"], seed=kept["seed"])
        _refuse_other_views(role, step, theirs, views, kept, augmentation_of(context))
        _refuse_other_labels(role, step, store["labels"])
        if views is None and (kept["augment"] or kept["mix"] is not None):
            views = theirs
    return views


def _refuse_other_views(
    role: str,
    step: Learning,
    theirs: Views,
    own: Views | None,
    kept: Mapping[str, Any],
    augmentation: Mapping[str, Any] | None,
) -> None:
    if own is not None and own != theirs:
        raise RecipeError(
            f"views is {own.count} (seed {own.seed}), and the store {role!r} holds {theirs.count} (seed "
            f"{theirs.seed}); leave views out, or label again with these"
        )
    if augmentation is not None and step.augment != kept["augment"]:
        label = "with augment: true and views: 8, or so" if step.augment else "with augment: false"
        raise RecipeError(
            f"augment is {str(step.augment).lower()}, and the store {role!r} was labelled with augment: "
            f"{str(kept['augment']).lower()}; set it to the same, or label again {label}"
        )
    if (augmentation if step.augment else None) != kept["augmentation"]:
        raise RecipeError(
            f"task.augment is {_text(augmentation)}, and the store {role!r} was labelled with "
            f"{_text(kept['augmentation'])}; set it to the same, or label again with it"
        )
    mix = None if step.mix is None else step.mix.plain()
    if mix != kept["mix"]:
        raise RecipeError(
            f"mix is {_text(mix)}, and the store {role!r} was labelled with {_text(kept['mix'])}; set it to "
            "the same, or label again with it"
        )


def _refuse_other_labels(role: str, step: Learning, theirs: int | None) -> None:
    """Labelled samples are mixed with labelled ones, so that which these are decides on the views."""
    if step.mix is not None and step.labels != theirs:
        raise RecipeError(
            f"labels is {step.labels or 'not set'}, and the store {role!r} was labelled with {theirs or 'none'}: "
            "labelled samples are mixed with labelled ones, so other views come of it; set it to the same, or label "
            "again with it"
        )


def refuse_absent(
    stores: Mapping[str, Artifact],
    step: Learning,
    context: Context,
    views: Views | None,
    only: Literal["all", "labelled"],
) -> None:
    """DataError where a store lacks an answer for a training sample in one of its views; loaders are not looked at."""
    split = splits_of(context).get("train")
    if not stores or not isinstance(split, Split):
        return
    if step.labels is not None:
        split = keep_labels(split, step.labels)
    indices = np.arange(len(split))
    if only == "labelled" and split.labelled is not None:
        indices = indices[split.labelled]
    varied = views if step.mix is not None or (step.augment and augmentation_of(context) is not None) else None
    for role, artifact in stores.items():
        store = Store.open(artifact.folder, verify="index", cache_bytes=0)
        absent = np.zeros(len(indices), bool)
        count = 0
        for number in range(1 if varied is None else varied.count):
            missing = ~store.contains(_seen(step, context, split, indices, views, number))
            absent |= missing
            count += int(missing.sum())
        if count:
            total = f"{len(indices):,} training samples" + ("" if varied is None else f" in {varied.count} views each")
            raise DataError(
                f"the store {role!r} ({artifact.folder}) holds no answer for {int(absent.sum()):,} of {total} "
                f"({count:,} answers are missing): it was made from other data; label the data of this step again"
            )


def _seen(
    step: Learning, context: Context, split: Split, indices: np.ndarray, views: Views | None, number: int
) -> np.ndarray:
    """What samples look like in one of their fixed views."""
    task, keys = context.task, split.keys[indices]

    def look(split: Split, indices: np.ndarray, seeds: np.ndarray | None) -> np.ndarray:
        return task.inputs(STUDENT).seen(split, indices, seeds)

    if views is None:
        return look(split, indices, None)
    numbers = np.full(len(indices), number, np.uint64)
    seeds = views.seeds(numbers, keys) if step.augment else None
    mixer = mixer_of(context, step.mix, split, views)
    if mixer is None:
        return look(split, indices, seeds)
    return mixer.seen(split, indices, seeds, numbers, look)


def _text(mix: Any) -> str:
    return "none" if mix is None else ", ".join(f"{key} {value}" for key, value in mix.items())


def collated(collate: Collate, split: Split, indices: np.ndarray, views: Views, number: int, *, augment: bool) -> Batch:
    """The samples at `indices` in one of their fixed views, exactly as training sees them."""
    keys = split.keys[indices]
    numbers = np.full(len(indices), number, np.uint64)
    seeds = views.seeds(numbers, keys) if augment else None
    return collate(split, indices, seeds=seeds, view=numbers)


def mixer_of(context: Context, mix: Mixing | None, split: Split, views: Views) -> Mixer | None:
    """What mixes the samples of a split in their fixed views."""
    return None if mix is None else Mixer(context.task, mix, split, views.seed)


def probe_batch(step: Learning, context: Context, count: int, views: Views | None) -> Batch:
    """A few training samples, as they are, or in the first of their fixed views."""
    split = splits_of(context)["train"]
    if views is None or not isinstance(split, Split):
        return few(context, count)
    if step.labels is not None:
        split = keep_labels(split, step.labels)
    mixer = mixer_of(context, step.mix, split, views)
    indices = np.arange(min(count, len(split)))
    collate = context.collate if mixer is None else mixer.collate
    seen = collated(collate, split, indices, views, 0, augment=step.augment)
    return seen if mixer is None else replace(seen, target=context.collate(split, indices).target)
