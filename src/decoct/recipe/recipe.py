"""Recipe: named steps over artifacts, as data; load it, look at it, run it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from decoct.data.base import Data
from decoct.errors import RecipeError, did_you_mean
from decoct.models.base import Model, shorthand
from decoct.recipe import file as recipe_file
from decoct.spec import Choice, Spec
from decoct.steps.base import Step
from decoct.steps.learning.sources import learning_in, problems_of, read_by
from decoct.steps.limits import Limits
from decoct.steps.ordering import order_problem, quantized_already
from decoct.tasks.base import Task

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
DEVICES = r"^(auto|cpu|cuda|cuda:[0-9]+|mps)$"


class Recipe(Spec):
    """A graph of steps over artifacts, listed in order.

    `seed` decides every random number; `sources` are data beside the main `data`, by name: learning steps draw a batch
    of each that a term of their objective names as its `source` beside every batch of the data; `models` are Specs by
    name, which steps take as inputs; each of `steps` takes the step before it where an input is left out. The same
    recipe comes from YAML, Python and the command line. `version`: which format of recipes it is. `task`: what the
    models read and answer. `data`: the data set that the steps learn from. `device`: where models train, auto (CUDA
    where there is one), cpu, cuda, cuda:1 or mps; no result is keyed by it, so that a run may go on elsewhere.
    `limits`: what the chain must keep as a whole; the last artifact that keeps them is kept.
    """

    version: Literal[1] = 1
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    device: str = Field(default="auto", pattern=DEVICES, exclude_if=lambda value: value == "auto")
    task: Annotated[Task, Choice("decoct.tasks")]
    data: Annotated[Data, Choice("decoct.data")]
    sources: dict[Name, Annotated[Data, Choice("decoct.data")]] = Field(
        default_factory=dict, exclude_if=lambda value: not value
    )
    limits: Limits | None = Field(default=None, exclude_if=lambda value: value is None)
    models: dict[Name, Annotated[Model, Choice("decoct.models"), BeforeValidator(shorthand)]] = {}
    steps: tuple[Annotated[Step, Choice("decoct.steps")], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _graph_is_whole(self) -> Recipe:
        answer = self.task.answer
        steps = tuple(step.for_answer(answer) for step in self.steps)
        if any(after is not before for after, before in zip(steps, self.steps)):
            self.__dict__["steps"] = steps  # written out, so that the recipe says what is done
        wrong = list(_graph_problems(self))
        wrong += [
            (("steps", index, *path), message, value)
            for index, step in enumerate(self.steps)
            for path, message, value in step.problems_with(answer)
        ]
        if wrong:
            details = [
                InitErrorDetails(type=PydanticCustomError("decoct", message), loc=loc, input=given)
                for loc, message, given in wrong
            ]
            raise ValidationError.from_exception_data("Recipe", details)
        return self

    @classmethod
    def load(cls, path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
        """Reads a recipe from a YAML file, with `overrides` as `key=value`; RecipeError names file, line and column."""
        return cls.from_marked(recipe_file.read_file(path), overrides)

    @classmethod
    def from_marked(cls, marked: recipe_file.Marked, overrides: Sequence[str] = ()) -> Recipe:
        """The recipe in a YAML text that was read with marks."""
        marked = recipe_file.override(marked, overrides)
        try:
            return cls.parse(marked.data)
        except RecipeError as error:
            raise recipe_file.locate(error.problems, marked) from None

    def step(self, name: str) -> Step:
        """The step of that name."""
        for step in self.steps:
            if step.name == name:
                return step
        raise RecipeError(f"no step {name!r}; {did_you_mean(name, [step.name for step in self.steps])}")

    def inputs_of(self, step: Step) -> dict[str, str]:
        """The inputs of a step by role, with what was left out filled in by the step before it."""
        return _inputs(self.steps, next(index for index, each in enumerate(self.steps) if each.name == step.name))

    def inputs_in_order(self) -> list[dict[str, str]]:
        """The inputs of every step, as `inputs_of` gives them."""
        return [_inputs(self.steps, index) for index in range(len(self.steps))]

    def yaml(self, *, defaults: bool = False) -> str:
        """This recipe as YAML; with `defaults`, every setting."""
        return recipe_file.dump(self.plain(defaults=defaults))

    def python(self) -> str:
        """This recipe as Python."""
        return recipe_file.as_python(self)

    def run(self, out: Path | str, **options: Any) -> Any:
        """Runs all steps in the folder `out`; unchanged ones are skipped. See `decoct.api.recipe.run` for the options.

        The work lies in a room above: it is found by its name, as what a catalogue names is.
        """
        return importlib.import_module("decoct.api.recipe").run(self, out, **options)


_Problem = tuple[tuple[str | int, ...], str, Any]
_UNSURE = ""
"""What a step gives with which something is wrong: what follows from that is not said again at the steps after it."""


def _graph_problems(recipe: Recipe) -> list[_Problem]:
    wrong: list[_Problem] = []
    gives: dict[str, str] = dict.fromkeys(recipe.models, "spec")
    places: dict[str, int] = {}
    for index, step in enumerate(recipe.steps):
        at = ("steps", index)
        own = _input_problems(recipe, index, gives)
        order = None if own else _order_problem(recipe.steps, index, places)
        if order:
            own.append(((*at, "inputs", "model"), order, _inputs(recipe.steps, index)["model"]))
        own += [((*at, *path), message, name) for path, message, name in _source_problems(recipe, step)]
        if step.name in gives:
            own.append(((*at, "name"), f"{step.name!r} is taken by another step or model; give a new one", step.name))
        gives[step.name] = _UNSURE if own else step.gives
        places.setdefault(step.name, index)
        wrong += own
    return wrong


def _input_problems(recipe: Recipe, index: int, gives: Mapping[str, str]) -> list[_Problem]:
    """What is wrong with a step's inputs: those that were written, else those that are missing, else the step before
    it, which it takes where nothing is said."""
    step, at = recipe.steps[index], ("steps", index, "inputs")
    inputs = _inputs(recipe.steps, index)
    found = {role: _input_problem(step, role, source, gives) for role, source in inputs.items()}
    wrong: list[_Problem] = [
        ((*at, role), text, inputs[role]) for role, text in found.items() if text and role in step.inputs
    ]
    others = "*" in step.roles and any(role not in {**step.roles, **step.optional} for role in inputs)
    absent = [
        role for number, role in enumerate(step.roles) if role not in inputs and role != "*" and not (number and others)
    ]
    unknown = [role for role in step.inputs if (found[role] or "").startswith("unknown")]
    if not unknown:  # which is what the missing one was meant to be
        wrong += [((*at, role), f"missing; {step.use} needs it: name a step or model", None) for role in absent]
    return wrong or [((*at, role), text, inputs[role]) for role, text in found.items() if text]


def _source_problems(recipe: Recipe, step: Step) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
    yield from problems_of(step, recipe.sources)
    for path, each in learning_in(step):
        for name in () if each.draws_sources else read_by(each):
            allowed = "train, distill, assistants, born_again, and steps that compress"
            yield (
                (*path, "objective"),
                f"{each.use} draws no source beside the data ({name!r}); allowed: {allowed}",
                name,
            )


def _order_problem(steps: Sequence[Step], index: int, places: Mapping[str, int]) -> str | None:
    nearest = next(_line(steps, index, places), None)
    return order_problem(steps[index], nearest) or quantized_already(steps[index], _line(steps, index, places))


def _line(steps: Sequence[Step], index: int, places: Mapping[str, int]) -> Iterator[Step]:
    """The steps that a step's model came through, the nearest first; `places`: of the steps before it, by name."""
    source = _inputs(steps, index).get("model", "")
    while places.get(source, index) < index:
        index = places[source]
        yield steps[index]
        source = _inputs(steps, index).get("model", "")


def _input_problem(step: Step, role: str, source: str, gives: Mapping[str, str]) -> str | None:
    known = {**step.roles, **step.optional}
    taken = known.get(role, known.get("*"))
    if taken is None:
        return f"unknown role; {step.use} takes {', '.join(known) or 'no inputs'}"
    if source not in gives:
        return f"{source!r} is no step before this one and no model; {did_you_mean(source, gives)}"
    if gives[source] != _UNSURE and gives[source] not in taken:
        kind = "a model that no step has made" if gives[source] == "spec" else f"of kind {gives[source]}"
        hint = "; export it first" if "exported" in taken and gives[source] == "spec" else ""
        return f"{source!r} is {kind}; {role} takes {' or '.join(taken)}{hint}"
    return None


def _inputs(steps: Sequence[Step], index: int) -> dict[str, str]:
    step = steps[index]
    inputs = dict(step.inputs)
    if index > 0:
        first = next(iter(step.roles), None)
        if first == "*" and not inputs:
            inputs[steps[index - 1].name] = steps[index - 1].name
        elif first is not None and first != "*" and first not in inputs:
            inputs = {first: steps[index - 1].name, **inputs}
    return inputs
