"""Which batches a term sees: those of the main data, or of the further source that it names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from decoct.errors import RecipeError, did_you_mean
from decoct.objectives.base import Objective
from decoct.outputs import Batch, Outputs
from decoct.spec import Spec


def role_and_source(role: str) -> tuple[str, str | None]:
    """The two parts of a role of `Objective.needs`.

    >>> role_and_source("student@target"), role_and_source("teacher")
    (('student', 'target'), ('teacher', None))
    """
    name, _, source = role.partition("@")
    return name, source or None


def sources_of(objective: Objective) -> tuple[str, ...]:
    """The further sources that an objective reads, by name in order."""
    terms = objective.flat()
    found = {each.source for each in terms}
    found |= {role_and_source(role)[1] for each in terms for role in each.needs()}
    return tuple(sorted(each for each in found if each is not None))


def objectives_in(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Objective]]:
    """The objectives in a Spec at any depth, each with the path that leads to it."""
    if isinstance(value, Objective):
        yield path, value
    if isinstance(value, Spec):
        for name in type(value).model_fields:
            yield from objectives_in(getattr(value, name), (*path, name))
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from objectives_in(each, (*path, key))
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from objectives_in(each, (*path, number))


def batch_at(objective: Objective, batch: Batch) -> Batch:
    """The batch whose samples a term sees; it has those of the other sources beside it still."""
    if objective.source is None:
        return batch
    return replace(_at(objective, batch.also), also=batch.also)


def said_at(objective: Objective, outputs: Outputs) -> Outputs:
    """What was said about the samples that a term sees."""
    if objective.source is None:
        return outputs
    return replace(_at(objective, outputs.also), also=outputs.also)


def _at(objective: Objective, also: Mapping[str, Any]) -> Any:
    name = str(objective.source)
    if name not in also:
        raise RecipeError(
            f"{objective.label}: source is {name!r}, of which there is nothing beside the main data here; "
            f"{did_you_mean(name, also)}"
        )
    return also[name]
