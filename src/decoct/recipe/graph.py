"""Nodes: the steps of a recipe under each seed, in order, with the folder of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decoct.steps.base import Step

if TYPE_CHECKING:
    from decoct.recipe.recipe import Recipe


@dataclass(frozen=True)
class Node:
    """One step under one seed."""

    index: int
    step: Step
    """With its inputs filled in, so that a default and the same name written out seed alike."""
    seed: int
    inputs: Mapping[str, tuple[str, ...]]
    """By role, the ids of nodes or the names of models."""
    folder: str

    @property
    def id(self) -> str:
        return self.folder


def folder_name(number: int, step: str, seed: int | None = None) -> str:
    """The folder of the step at place `number` (from 0); `seed` where it is not the recipe's.

    >>> folder_name(2, "student", 5)
    '03-student.seed-5'
    """
    return f"{number + 1:02d}-{step}" + ("" if seed is None else f".seed-{seed}")


def graph(recipe: Recipe, seeds: Sequence[int], *, seeds_all: bool = False) -> list[Node]:
    """The nodes of a recipe in order.

    Under the first of `seeds` every step stands once. Under the others stand the steps that learn, and all that depends
    on them, except what serves as a teacher (unless `seeds_all`). Steps that give records stand once and take every
    seed's artifacts.
    """
    resolved = recipe.inputs_in_order()
    fixed = set() if seeds_all else _teacher_side(recipe.steps, resolved)
    made: dict[str, list[Node]] = {}
    nodes: list[Node] = []
    for index, (step, inputs) in enumerate(zip(recipe.steps, resolved)):
        full = step.replace(inputs=inputs)
        repeated = step.gives != "records" and (
            (step.learns and step.name not in fixed) or any(len(made.get(source, [])) > 1 for source in inputs.values())
        )
        made[step.name] = []
        for seed in seeds if repeated else seeds[:1]:
            sources = {
                role: _sources(made, source, seed, all_seeds=step.gives == "records") for role, source in inputs.items()
            }
            folder = folder_name(index, step.name, seed if seed != seeds[0] else None)
            made[step.name].append(Node(index, full, seed, sources, folder))
        nodes += made[step.name]
    return nodes


def _sources(made: Mapping[str, list[Node]], source: str, seed: int, *, all_seeds: bool) -> tuple[str, ...]:
    nodes = made.get(source)
    if nodes is None:
        return (source,)
    if all_seeds:
        return tuple(node.id for node in nodes)
    return (next((node.id for node in nodes if node.seed == seed), nodes[0].id),)


def _teacher_side(steps: Sequence[Step], resolved: Sequence[Mapping[str, str]]) -> set[str]:
    """Names of the steps that serve as a teacher, and of those that these were made from."""
    wanted = {
        source
        for step, inputs in zip(steps, resolved)
        for role, source in inputs.items()
        if step.learns and role != "model"
    }
    for step, inputs in reversed(list(zip(steps, resolved))):
        if step.name in wanted:
            wanted |= set(inputs.values())
    return wanted
