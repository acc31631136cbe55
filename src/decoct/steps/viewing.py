"""In which views a step sees its samples: those of its stored teachers, its own fixed ones, or new ones each epoch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from decoct.artifact import Artifact
from decoct.data.base import Split
from decoct.data.sources import Collate
from decoct.data.splits import keep_labels
from decoct.data.views import Views
from decoct.errors import RecipeError
from decoct.steps.base import Context, Inputs
from decoct.steps.drawing import few, splits_of
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.mixing.base import Mixer, Mixing

if TYPE_CHECKING:
    from decoct.outputs import Batch
    from decoct.steps.learning import Learning

STORE = "store"
"""The kind of an artifact that holds soft labels."""


def stores_of(inputs: Inputs) -> dict[str, Artifact]:
    """The inputs that are soft-label stores, by role."""
    return {role: each for role, each in inputs.items() if isinstance(each, Artifact) and each.kind == STORE}


def augments(context: Context) -> bool:
    """Whether the task varies its samples at all."""
    return isinstance(context.task, ImageClassification) and bool(context.task.augment)


def views_of(step: Learning, inputs: Inputs, context: Context) -> Views | None:
    """The fixed views in which the step draws its samples; None for new ones each epoch.

    RecipeError where a store among the inputs holds other views than the step asks for.
    """
    views = step.views
    if views is not None and views.count > 1 and not step.augment and step.mix is None:
        raise RecipeError(f"views is {views.count} and augment false: all views are the same; leave one of them out")
    stores = stores_of(inputs)
    if stores and step.teacher_views > 1:
        raise RecipeError(
            f"teacher_views is {step.teacher_views}, and {', '.join(stores)} is a store, which answers about the view "
            "that the student sees alone; leave teacher_views out"
        )
    for role, store in stores.items():
        kept = store.meta["views"]
        theirs = Views(count=kept["count"], seed=kept["seed"])
        _refuse_other_views(role, step, theirs, views, kept, augments(context))
        if views is None and (kept["augment"] or kept["mix"] is not None):
            views = theirs
    return views


def _refuse_other_views(
    role: str, step: Learning, theirs: Views, own: Views | None, kept: dict[str, Any], augmenting: bool
) -> None:
    if own is not None and own != theirs:
        raise RecipeError(
            f"views is {own.count} (seed {own.seed}), and the store {role!r} holds {theirs.count} (seed "
            f"{theirs.seed}); leave views out, or label again with these"
        )
    if augmenting and step.augment != kept["augment"]:
        label = "with augment: true and views: 8, or so" if step.augment else "with augment: false"
        raise RecipeError(
            f"augment is {str(step.augment).lower()}, and the store {role!r} was labelled with augment: "
            f"{str(kept['augment']).lower()}; set it to the same, or label again {label}"
        )
    mix = None if step.mix is None else step.mix.plain()
    if mix != kept["mix"]:
        raise RecipeError(
            f"mix is {_mix_text(mix)}, and the store {role!r} was labelled with {_mix_text(kept['mix'])}; set it to "
            "the same, or label again with it"
        )


def _mix_text(mix: Any) -> str:
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
    collate = context.task.collate if mixer is None else mixer.collate
    seen = collated(collate, split, indices, views, 0, augment=step.augment)
    return seen if mixer is None else replace(seen, target=context.task.collate(split, indices).target)
