"""Objective (data) and Term (what it builds), and the sums and products that join them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import model_validator
from torch import Tensor, nn

from decoct.outputs import Batch, Needs, Outputs
from decoct.spec import Choice, Spec
from decoct.tasks.base import Task
from decoct.training.clock import Clock
from decoct.training.schedules import Scalar, Schedule, times


@dataclass(frozen=True)
class Probe:
    """What a Term is built from: the task, one batch, and what both sides said about it.

    `student` and `teachers` hold every feature that `needs` asked for, so shapes are known; `modules` the student
    (and teachers under their names) for Terms that read the architecture; `known` by teacher the ids of the classes
    that its logits are for, where these are not all. No gradient flows here.
    """

    task: Task
    batch: Batch
    student: Outputs
    teachers: Mapping[str, Outputs]
    modules: Mapping[str, nn.Module]
    known: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


class Term(nn.Module, ABC):
    """One running loss term. Its own parameters (projectors, banks) are trained and checkpointed with the student.

    `splittable`: the mean over a batch equals the item-weighted mean over any split of it. `selection`: how samples
    that do not count are kept away: "mask" (the term reads `student.mask`), "index" (the samples that count are
    picked before it sees them) or "own" (the term looks at `batch.labelled` itself).
    """

    splittable: bool = True
    selection: Literal["mask", "index", "own"] = "index"

    @abstractmethod
    def forward(self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock) -> Tensor:
        """The mean over items, in float32 at least; 0 with a gradient of 0 where no item counts."""

    @abstractmethod
    def items(self, batch: Batch) -> Tensor | int:
        """How many items `forward` averages over; known from the batch alone."""


class Objective(Spec):
    """Describes a term: its weight, its name in the log, and on which samples it works.

    `weight` a number or schedule; `name` as logged (the catalogue key by default); `head` a task's head, where there
    are several; `teacher` the one that it listens to, where there are several; `on` which samples count.
    `taught`: it listens to a teacher; `supervised`: it reads targets, so that unlabelled samples never count;
    `splittable`: what its Term says of itself.
    """

    taught: ClassVar[bool] = True
    supervised: ClassVar[bool] = False
    splittable: ClassVar[bool] = True

    weight: Scalar = 1.0
    name: str | None = None
    head: str | None = None
    teacher: str | None = None
    on: Literal["all", "labelled", "unlabelled"] = "all"

    @property
    def label(self) -> str:
        """The name under which the term is logged."""
        return self.name or self.use

    def needs(self) -> Mapping[str, Needs]:
        """What must be captured, by role: "student", "teacher"."""
        return {}

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
    """Adds several objectives; a list in YAML is short for it. Its `weight` multiplies every term."""

    use: ClassVar[str] = "sum"
    terms: tuple[Annotated[Objective, Choice("decoct.objectives")], ...]

    @model_validator(mode="after")
    def _unique_names(self) -> Sum:
        names = [each.label for each in self.flat()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two terms are called {', '.join(twice)}; give one of them another `name`")
        return self

    def flat(self) -> tuple[Objective, ...]:
        return tuple(
            each.replace(weight=_product(self.weight, each.weight)) for part in self.terms for each in part.flat()
        )

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
    return value.flat() if isinstance(value, Sum) else (value,)


def _product(a: float | Schedule, b: float | Schedule) -> float | Schedule:
    if isinstance(a, Schedule) and isinstance(b, Schedule):
        raise ValueError(
            "a weight that is a schedule inside a sum whose weight is a schedule; give one of them a number"
        )
    return times(a, b) if isinstance(b, int | float) else times(b, a)  # type: ignore[arg-type]
