"""Schedules: a weight or temperature that changes as training goes on."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

from decoct.spec import Choice, Spec
from decoct.training.clock import Clock


class Schedule(Spec):
    """A number as a function of the clock."""

    @abstractmethod
    def at(self, clock: Clock) -> float:
        """The value now."""

    @abstractmethod
    def times(self, factor: float) -> Schedule:
        """The schedule whose every value is `factor` times this one's."""

    @abstractmethod
    def bounds(self) -> tuple[float, float]:
        """Least and greatest value that it takes."""


class Constant(Schedule):
    """The same value throughout.

    >>> Constant(3).at(Clock(progress=0.7))
    3.0
    """

    use: ClassVar[str] = "constant"
    positional: ClassVar[tuple[str, ...]] = ("value",)
    value: float

    def at(self, clock: Clock) -> float:
        return self.value

    def times(self, factor: float) -> Constant:
        return self.replace(value=self.value * factor)

    def bounds(self) -> tuple[float, float]:
        return self.value, self.value


class Linear(Schedule):
    """A straight line from `start` to `end`, between the fractions `begin` and `finish` of the run.

    >>> Linear(8, 2).at(Clock(progress=0.5))
    5.0
    """

    use: ClassVar[str] = "linear"
    positional: ClassVar[tuple[str, ...]] = ("start", "end")
    start: float
    end: float
    begin: float = Field(default=0.0, ge=0, le=1)
    finish: float = Field(default=1.0, ge=0, le=1)

    def at(self, clock: Clock) -> float:
        if clock.progress >= self.finish:
            return self.end
        if clock.progress <= self.begin:
            return self.start
        part = (clock.progress - self.begin) / (self.finish - self.begin)
        return self.start + (self.end - self.start) * part

    def times(self, factor: float) -> Linear:
        return self.replace(start=self.start * factor, end=self.end * factor)

    def bounds(self) -> tuple[float, float]:
        return min(self.start, self.end), max(self.start, self.end)


class Cosine(Schedule):
    """Half a cosine from `start` to `end`, after a straight rise from 0 during the fraction `warmup` of the run.

    >>> Cosine(8, 2).at(Clock(progress=0.5))
    5.0
    >>> Cosine(8, warmup=0.5).at(Clock(progress=0.25))
    4.0
    """

    use: ClassVar[str] = "cosine"
    positional: ClassVar[tuple[str, ...]] = ("start", "end")
    start: float
    end: float = 0.0
    warmup: float = Field(default=0.0, ge=0, lt=1)

    def at(self, clock: Clock) -> float:
        if clock.progress < self.warmup:
            return self.start * clock.progress / self.warmup
        part = min(1.0, (clock.progress - self.warmup) / (1 - self.warmup))
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * part))

    def times(self, factor: float) -> Cosine:
        return self.replace(start=self.start * factor, end=self.end * factor)

    def bounds(self) -> tuple[float, float]:
        values = (self.start, self.end, 0.0) if self.warmup else (self.start, self.end)
        return min(values), max(values)


def _validate(value: Any) -> float | Schedule:
    if isinstance(value, Schedule):
        return value
    if isinstance(value, Mapping):
        found = Choice("decoct.training").validate(value)
        assert isinstance(found, Schedule)
        return found
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is neither a number nor a schedule; write 4.0 or {{use: linear, ...}}")
    return float(value)


Scalar = Annotated[
    Any,
    BeforeValidator(_validate),
    PlainSerializer(lambda value: value.plain() if isinstance(value, Schedule) else value),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "object", "required": ["use"]}]}),
]
"""A number, or a schedule that gives one at each step: field type of weights and temperatures."""


def at(value: float | Schedule, clock: Clock) -> float:
    """The number that a Scalar stands for now.

    >>> at(4.0, Clock()), at(Linear(0, 1), Clock(progress=0.25))
    (4.0, 0.25)
    """
    return value.at(clock) if isinstance(value, Schedule) else value


def times(value: float | Schedule, factor: float) -> float | Schedule:
    """A Scalar scaled by a number."""
    return value.times(factor) if isinstance(value, Schedule) else value * factor


def bounds(value: float | Schedule) -> tuple[float, float]:
    """Least and greatest value of a Scalar."""
    return value.bounds() if isinstance(value, Schedule) else (value, value)
