"""Objective (data) and Term (what it builds), and the sums and products that join them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from decoct.objectives._sweep import Rows
from decoct.objectives.balance.base import Balance
from decoct.objectives.refine.base import Refinement
from decoct.outputs import Batch, Needs, Outputs
from decoct.spec import Choice, Spec
from decoct.tasks.answers.base import Over
from decoct.tasks.base import Task
from decoct.training.clock import Clock
from decoct.training.schedules import Scalar, Schedule, times

Suits = Literal["any", "classes", "numbers"]
"""Which answers a term is for."""


@dataclass(frozen=True)
class Probe:
    """What a Term is built from: the task, one batch, and what both sides said about it.

    `student` and `teachers` hold every feature that `needs` asked for, so shapes are known; `modules` the student
    (and teachers under their names) for Terms that read the architecture; `known` by teacher the ids of the classes
    that its logits are for, where these are not all; `counts` the labelled training samples of each class, where they
    are known, and `counts_beside` the same of further sources, by name; `reader`: which inputs the student reads. No
    gradient flows here.
    """

    task: Task
    batch: Batch
    student: Outputs
    teachers: Mapping[str, Outputs]
    modules: Mapping[str, nn.Module]
    known: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    counts: tuple[int, ...] | None = None
    reader: str = "student"
    counts_beside: Mapping[str, tuple[int, ...] | None] = field(default_factory=dict)


class Term(nn.Module, ABC):
    """One running loss term. Its own parameters (projectors, banks) are trained and checkpointed with the student.

    `splittable`: the mean over a batch equals the item-weighted mean over any split of it. `selection`: how what does
    not count is kept away: "mask" (the term averages over the places that `student.mask` keeps), "index" (the samples
    that count are picked before it sees them) or "own" (the term looks at `batch.labelled` itself).
    """

    splittable: bool = True
    selection: Literal["mask", "index", "own"] = "index"

    @abstractmethod
    def forward(self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock) -> Tensor:
        """The mean over items, in float32 at least; 0 with a gradient of 0 where no item counts."""

    @abstractmethod
    def items(self, batch: Batch) -> Tensor | int:
        """How many items `forward` averages over where nothing is kept away; known from the batch alone."""

    def rows(self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock) -> Rows | None:
        """Its part of a sweep over the student's Factored distribution; None where it takes no part in one."""
        return None

    def layers(self) -> list[dict[str, Any]]:
        """The pairs of layers that it compares: paths "student" and "teacher", their shapes, the "adapter" in words."""
        return []

    def learned(self) -> dict[str, float]:
        """Numbers that it learns, such as a temperature, by name; for the log."""
        return {}


class Objective(Spec):
    """Describes a term: its weight, its name in the log, and on which samples it works.

    `weight` a number or schedule; `name` as logged (the catalogue key by default); `head` a task's head, where there
    are several; `teacher` the one that it listens to, where there are several; `on` which samples count; `source` of
    which of the recipe's `sources` the samples are, and what is said about them, in place of the main data.
    `refine`: what is done to the teacher's answer before the term hears it, in order, as `[{use: confidence}]`.
    `taught`: it listens to a teacher; `supervised`: it reads targets, so that unlabelled samples never count; `mixed`:
    these may be distributions over classes, as mixup makes them; `splittable`: what its Term says of itself;
    `asks_task`: it reads what the task's own loss reads of the student.
    """

    taught: ClassVar[bool] = True
    supervised: ClassVar[bool] = False
    mixed: ClassVar[bool] = False
    splittable: ClassVar[bool] = True
    asks_task: ClassVar[bool] = False

    weight: Scalar = 1.0
    name: str | None = None
    head: str | None = None
    teacher: str | None = None
    on: Literal["all", "labelled", "unlabelled"] = "all"
    source: str | None = Field(default=None, exclude_if=lambda value: value is None)
    refine: tuple[Annotated[Refinement, Choice("decoct.objectives.refine")], ...] = Field(
        default=(), exclude_if=lambda value: not value
    )

    @model_validator(mode="after")
    def _refines_a_teacher(self) -> Self:
        if self.refine and not self.taught:
            raise ValueError(f"refine works on a teacher's answer, and {self.use} listens to none; leave it out")
        return self

    def suits(self) -> Suits:
        """Which answers it is for: distributions over classes, predicted numbers, or any."""
        return "any"

    @property
    def over(self) -> Over:
        """What it averages over: where its targets count, or wherever a model answers."""
        return "labelled" if self.supervised else "items"

    @property
    def label(self) -> str:
        """The name under which the term is logged."""
        return self.name or self.use

    def needs(self) -> Mapping[str, Needs]:
        """What it wants of each role, "student" and "teacher": features, and the forms of the distribution that it
        takes, all of them where it reads none.

        A role as `student@target` is what that model says about the batch of a further source; the term finds it in
        `student.also["target"]`, and the samples in `batch.also["target"]`.
        """
        return {}

    @property
    def undecided(self) -> bool:
        """Whether it leaves its layers to be chosen; `choose_layers` does, before anything is captured."""
        return False

    def decide(self, student: Outputs, teacher: Outputs) -> Objective:
        """The same with layers chosen from what both sides gave with every layer captured."""
        raise AssertionError(f"{self.label} leaves nothing to be decided")

    @abstractmethod
    def build(self, probe: Probe) -> Term:
        """The running term; RecipeError where the shapes cannot work, naming both."""

    def flat(self) -> tuple[Objective, ...]:
        """This objective as single terms with their final weights."""
        return (self,)

    def __add__(self, other: Any) -> Objective:
        if isinstance(other, int | float) and other == 0:
            return self
        if not isinstance(other, Objective):
            return NotImplemented
        return Sum(terms=_addends(self) + _addends(other))

    __radd__ = __add__

    def __mul__(self, factor: Any) -> Objective:
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            if isinstance(factor, Spec) and self.weight == 1.0:
                return self.replace(weight=factor)
            return NotImplemented
        return self.replace(weight=times(self.weight, float(factor)))

    __rmul__ = __mul__


class Sum(Objective):
    """Adds several objectives; a list in YAML is short for it. Its `weight` multiplies every term.

    `balance`: factors on the terms that follow how training goes, as `{use: gradnorm, alpha: 1.5}`; for the sum that is
    trained, not for one inside another. Its `refine` comes before that of every taught term; its `source` is that of
    every term which names none. `terms`: the objectives that are added.
    """

    use: ClassVar[str] = "sum"
    terms: tuple[Annotated[Objective, Choice("decoct.objectives")], ...]
    balance: Annotated[Balance, Choice("decoct.objectives.balance")] | None = Field(
        default=None, exclude_if=lambda value: value is None
    )

    @model_validator(mode="after")
    def _unique_names(self) -> Sum:
        names = [each.label for each in self.flat()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two terms are called {', '.join(twice)}; give one of them another `name`")
        return self

    @model_validator(mode="after")
    def _one_balance(self) -> Sum:
        if any(isinstance(each, Sum) and each.balance is not None for each in self.terms):
            raise ValueError("a sum with a balance inside another sum; put all terms and the balance in the outer one")
        return self

    def flat(self) -> tuple[Objective, ...]:
        return tuple(self._outer(each) for part in self.terms for each in part.flat())

    def _outer(self, term: Objective) -> Objective:
        """A term with what this sum says of all of them."""
        refine = (*self.refine, *term.refine) if term.taught else ()
        moved = {"source": self.source} if term.source is None and self.source is not None else {}
        return term.replace(weight=_product(self.weight, term.weight), refine=refine, **moved)

    def needs(self) -> Mapping[str, Needs]:
        joined: dict[str, Needs] = {}
        for term in self.flat():
            for role, needs in term.needs().items():
                joined[role] = joined.get(role, Needs()) | needs
        return joined

    def build(self, probe: Probe) -> Term:
        raise AssertionError("a Sum is flattened by flat() before it is built")


def as_objective(value: Any) -> Any:
    """Plain data for an objective: a list is a sum, a name alone the entry with its defaults."""
    if isinstance(value, list | tuple):
        return {"use": "sum", "terms": list(value)}
    if isinstance(value, str):
        return {"use": value}
    return value


def _addends(value: Objective) -> tuple[Objective, ...]:
    return value.flat() if isinstance(value, Sum) and value.balance is None else (value,)


def _product(a: float | Schedule, b: float | Schedule) -> float | Schedule:
    if isinstance(a, Schedule) and isinstance(b, Schedule):
        raise ValueError(
            "a weight that is a schedule inside a sum whose weight is a schedule; give one of them a number"
        )
    return times(a, b) if isinstance(b, int | float) else times(b, a)  # type: ignore[arg-type]
