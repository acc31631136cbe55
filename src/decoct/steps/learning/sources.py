"""Further sources of data beside the main one: which a step reads, their batches, what models say about these."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from decoct.data.hashing import keyed
from decoct.errors import RecipeError, did_you_mean
from decoct.objectives.base import Objective, Sum
from decoct.objectives.sources import objectives_in, sources_of
from decoct.outputs import Batch, Outputs, Predictor
from decoct.spec import Spec
from decoct.steps.base import Context, Step
from decoct.steps.learning.batches import few
from decoct.steps.learning.settings import Learning


def read_by(step: Spec) -> tuple[str, ...]:
    """The further sources that the objectives of a step read, those of a step inside it too, by name in order."""
    return tuple(sorted({name for _, each in objectives_in(step) for name in sources_of(each)}))


def learning_in(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Learning]]:
    """The steps that train in a step: itself, and one that it runs inside, with the path that leads to it."""
    if isinstance(value, Learning):
        yield path, value
    if isinstance(value, Step):
        for name in type(value).model_fields:
            yield from learning_in(getattr(value, name), (*path, name))


def at_source(context: Context, name: str) -> Context:
    """The same context with a further source in the place of the data, drawn by a seed H(seed, name) of its own."""
    if name not in context.sources:
        raise RecipeError(f"source is {name!r}, and there is none of this name; {did_you_mean(name, context.sources)}")
    seed = int(keyed(context.seed, "source", name)[0] >> np.uint64(33))
    return replace(context, data=context.sources[name], seed=seed)


def with_few(batch: Batch, context: Context, names: Iterable[str], count: int) -> Batch:
    """A batch with the first `count` training samples of each of the sources beside it."""
    also = {name: few(at_source(context, name), count) for name in sorted(names)}
    return replace(batch, also={**batch.also, **also}) if also else batch


def answering(
    predict: Predictor,
    names: Iterable[str],
    within: Callable[[Batch], AbstractContextManager[object]] = lambda batch: nullcontext(),
) -> Callable[[Batch], Outputs]:
    """A predictor that also answers about the batches beside the main one of these sources, each by itself.

    Batch statistics are those of each batch; `within` is the context in which that of a further source is seen. A batch
    that has none of them beside it, as in validation, is answered alone.
    """
    wanted = sorted(names)
    if not wanted:
        return predict

    def answered(batch: Batch) -> Outputs:
        outputs = predict(batch)
        also: dict[str, Outputs] = {}
        for name in wanted:
            if name in batch.also:
                with within(batch.also[name]):
                    also[name] = predict(batch.also[name])
        return replace(outputs, also=also) if also else outputs

    return answered


def refuse_other_classes(objective: Objective, context: Context) -> None:
    """RecipeError where a term reads class ids of a source whose classes are not those of the data."""
    for term in objective.flat():
        if term.source is None or not term.supervised or term.head is not None:
            continue
        theirs = at_source(context, term.source).data.classes
        if theirs and context.data.classes and theirs != context.data.classes:
            raise RecipeError(
                f"{term.label}: source {term.source!r} has the classes {_listed(theirs)}, and the data have "
                f"{_listed(context.data.classes)}, so that their ids mean other things; give data with the same "
                "classes, or take a term that reads no targets there"
            )


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")


def problems_of(step: Spec, known: Collection[str]) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
    """Where an objective of a step reads a source that is not known: the path, what is wrong, the name."""
    for path, each in objectives_in(step):
        named = each.source is not None
        for name in (str(each.source),) if named else () if isinstance(each, Sum) else sources_of(each):
            if name not in known:
                hint = did_you_mean(name, known) if known else "the recipe has none: give it `sources`, beside data"
                yield (*path, "source") if named else path, f"no source {name!r}; {hint}", name
