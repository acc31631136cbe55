"""Schedules: a weight or temperature that changes as training goes on."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, FiniteFloat, PlainSerializer, WithJsonSchema, model_validator

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

    `value`: the number that it always is.

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

    @model_validator(mode="after")
    def _forwards(self) -> Linear:
        if self.begin > self.finish:
            raise ValueError(f"begin is {self.begin} and finish {self.finish}; begin comes first")
        return self

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


class StepDecay(Schedule):
    """`start`, multiplied by `factor` at each of `milestones`, which are fractions of the run in ascending order.

    At a milestone the new value holds already. Equals torch's MultiStepLR over the clock.

    >>> [StepDecay(8, factor=0.5, milestones=(0.5, 0.75)).at(Clock(progress=p)) for p in (0.4, 0.5, 0.9)]
    [8.0, 4.0, 2.0]
    """

    use: ClassVar[str] = "step"
    positional: ClassVar[tuple[str, ...]] = ("start", "factor")
    start: FiniteFloat
    factor: FiniteFloat = 0.1
    milestones: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(default=(0.5, 0.75), min_length=1)

    @model_validator(mode="after")
    def _ascending(self) -> StepDecay:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones are {self.milestones}; write them in ascending order, each once")
        return self

    def at(self, clock: Clock) -> float:
        return self._after(sum(clock.progress >= each for each in self.milestones))

    def times(self, factor: float) -> StepDecay:
        return self.replace(start=self.start * factor)

    def bounds(self) -> tuple[float, float]:
        values = [self._after(passed) for passed in range(len(self.milestones) + 1)]
        return min(values), max(values)

    def _after(self, passed: int) -> float:
        return float(self.start * self.factor**passed)


class Exponential(Schedule):
    """start · (end / start)^progress: the same ratio over equal parts of the run; both of one sign and not 0.

    `begin` and `finish`: the fractions of the run between which it falls or rises. `start`: the value at `begin`.
    `end`: the value at `finish`.

    >>> round(Exponential(8, 2).at(Clock(progress=0.5)), 12)
    4.0
    """

    use: ClassVar[str] = "exponential"
    positional: ClassVar[tuple[str, ...]] = ("start", "end")
    start: FiniteFloat
    end: FiniteFloat
    begin: float = Field(default=0.0, ge=0, le=1)
    finish: float = Field(default=1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _has_a_ratio(self) -> Exponential:
        if not (self.start < 0 and self.end < 0) and not (self.start > 0 and self.end > 0):
            raise ValueError(f"from {self.start} to {self.end}; both must be above 0, or both below; else use linear")
        if self.begin > self.finish:
            raise ValueError(f"begin is {self.begin} and finish {self.finish}; begin comes first")
        return self

    def at(self, clock: Clock) -> float:
        if clock.progress >= self.finish:
            return self.end
        if clock.progress <= self.begin:
            return self.start
        part = (clock.progress - self.begin) / (self.finish - self.begin)
        low, high = self.bounds()
        between = math.copysign(math.exp(math.log(abs(self.start)) * (1 - part) + math.log(abs(self.end)) * part), low)
        return min(max(between, low), high)

    def times(self, factor: float) -> Schedule:
        if self.start * factor == 0 or self.end * factor == 0:
            return Constant(value=0.0)
        return self.replace(start=self.start * factor, end=self.end * factor)

    def bounds(self) -> tuple[float, float]:
        return min(self.start, self.end), max(self.start, self.end)


class Release(Schedule):
    """`start` until the fraction `after` of the run, then down to `end` along half a cosine that takes `over` of it.

    As the weight of a taught term it lets the student go from the teacher: at `over` 0 all at once, else gradually.

    >>> [round(Release(0.9, after=0.5, over=0.2).at(Clock(progress=p)), 9) for p in (0.5, 0.6, 0.7)]
    [0.9, 0.45, 0.0]
    """

    use: ClassVar[str] = "release"
    positional: ClassVar[tuple[str, ...]] = ("start", "end")
    start: FiniteFloat = 1.0
    end: FiniteFloat = 0.0
    after: float = Field(default=0.5, ge=0, le=1)
    over: float = Field(default=0.25, ge=0, le=1)

    @model_validator(mode="after")
    def _ends_in_time(self) -> Release:
        if self.after + self.over > 1 + 1e-12:
            raise ValueError(f"after is {self.after} and over {self.over}; together they are at most 1, the whole run")
        return self

    def at(self, clock: Clock) -> float:
        if clock.progress >= self.after + self.over:
            return self.end
        if clock.progress <= self.after:
            return self.start
        part = (clock.progress - self.after) / self.over
        value = self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * part))
        low, high = self.bounds()
        return min(max(value, low), high)

    def times(self, factor: float) -> Release:
        return self.replace(start=self.start * factor, end=self.end * factor)

    def bounds(self) -> tuple[float, float]:
        return min(self.start, self.end), max(self.start, self.end)


def _validate(value: Any) -> float | Schedule:
    if isinstance(value, Schedule):
        return value
    if isinstance(value, Mapping):
        found = Choice("decoct.training").validate(value)
        assert isinstance(found, Schedule)
        return found
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is neither a number nor a schedule; write 4.0 or {{use: linear, ...}}")
    if not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
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
    return value if isinstance(value, int | float) else value.at(clock)


def times(value: float | Schedule, factor: float) -> float | Schedule:
    """A Scalar scaled by a number."""
    return value.times(factor) if isinstance(value, Schedule) else value * factor


def bounds(value: float | Schedule) -> tuple[float, float]:
    """Least and greatest value of a Scalar."""
    return value.bounds() if isinstance(value, Schedule) else (value, value)
