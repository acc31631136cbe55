"""Search: a budget met by halving the range of one setting of another step."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from decoct.artifact import MANIFEST, Artifact, read_json, write_whole, writing
from decoct.errors import BudgetMissed, did_you_mean
from decoct.models.interface import MAIN
from decoct.models.saving import load_model
from decoct.spec import Choice
from decoct.steps.base import TRAIN, Context, Inputs, Step, StepProblem
from decoct.steps.records import SEARCHED
from decoct.steps.shipping.asking import manual_of, put_into
from decoct.steps.shipping.benchmark import finite
from decoct.steps.shipping.budgets import Budgets, Measured, measured
from decoct.targets.onnx import Onnx

if TYPE_CHECKING:
    from decoct.tasks.answers.base import Answer


def _named(value: Any) -> Any:
    """The inner step with a name, which its user need not give."""
    return {"name": "tried", **value} if isinstance(value, Mapping) else value


@dataclass(frozen=True)
class Tried:
    """One run of the inner step: the value of its setting, and the file that came out against the budgets."""

    value: float
    measured: Measured

    @property
    def good(self) -> bool:
        """Whether every budget is kept."""
        return not self.measured.missed

    def data(self) -> dict[str, Any]:
        """As it stands in search.json."""
        return {"value": self.value, "good": self.good, "budgets": self.measured.data()}


class Search(Step, Budgets):
    """Meets a budget by bisection over one setting of another step that compresses, as scheme.ratio of prune.

    `step`: what is tried, with this step's inputs; `setting`: the number in it that moves from `low` to `high`;
    `stronger`: whether more (up) or less (down) of it compresses more; `whole`: whole numbers only; at most `tries`
    runs. With `min_quality` alone the strongest compression that keeps it is chosen; with `max_latency_ms` or
    `max_size_bytes` the mildest that meets them, which then must keep `min_quality` too. Each try is measured as a
    float ONNX file: quality on validation data, latency of one sample on one thread. Size and quality are taken to
    move one way with the setting. BudgetMissed where no try is good. The tries stand in search.json.
    """

    use: ClassVar[str] = "search"
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "model": ("model", "spec"),
        "*": ("model", "estimator", "exported", "store", "spec"),
    }
    optional: ClassVar[Mapping[str, tuple[str, ...]]] = {TRAIN: ("data",)}
    learns: ClassVar[bool] = True
    everywhere: ClassVar[bool] = True
    machine_bound_by: ClassVar[tuple[str, ...]] = ("max_latency_ms",)

    step: Annotated[Step, Choice("decoct.steps"), BeforeValidator(_named)]
    setting: str
    low: float
    high: float
    stronger: Literal["up", "down"] = "up"
    whole: bool = False
    tries: int = Field(default=5, ge=1, le=50)

    @model_validator(mode="after")
    def _can_be_searched(self) -> Search:
        if not self.budgets():
            raise ValueError("no budget; give min_quality, max_latency_ms or max_size_bytes")
        if not self.low < self.high:
            raise ValueError(f"low is {self.low:g} and high {self.high:g}; low must be less")
        if self.step.gives != "model":
            raise ValueError(f"step {self.step.use} gives {self.step.gives}; search tries steps that give a model")
        if self.step.inputs:
            raise ValueError("step.inputs: give the inputs to the search; it hands them on")
        for value in (self.low, self.high):
            self.at(value)
        return self

    def at(self, value: float) -> Step:
        """The inner step with its setting at a value; ValueError for a setting that it does not have."""
        plain, full = self.step.plain(defaults=False), self.step.plain()
        plain["name"] = f"{self.name}-{value:g}".replace(".", "_").replace("+", "")
        place: dict[str, Any] = plain
        *path, last = self.setting.split(".")
        for key in path:
            full = _part(key, full, self.setting)
            place = place.setdefault(key, {"use": full["use"]} if isinstance(full, Mapping) and "use" in full else {})
        now = _part(last, full, self.setting)
        if isinstance(now, bool) or not isinstance(now, int | float | None):
            raise ValueError(f"setting {self.setting!r} is {now!r}, no number")
        whole = self.whole or (float(value).is_integer() and not isinstance(now, float))
        place[last] = round(value) if whole else value
        return type(self.step).parse(plain)

    def for_answer(self, answer: Answer) -> Step:
        inner = self.step.for_answer(answer)
        return self if inner is self.step else self.replace(step=inner)

    def problems_with(self, answer: Answer) -> Iterator[StepProblem]:
        for path, message, value in self.step.problems_with(answer):
            yield ("step", *path), message, value

    def run(self, inputs: Inputs, context: Context) -> Artifact:
        tried = self._tries(inputs, context)
        good = [each for each in tried if each.good]
        if not good:
            best = min(tried, key=_distance)
            raise BudgetMissed(
                f"{context.name}: none of {len(tried)} tries of {self.setting} from {self.low:g} to {self.high:g} "
                f"keeps the budget; nearest, at {best.value:g}: {'; '.join(best.measured.words())}"
            )
        pick = self._strength if self._strongest_wins else lambda value: -self._strength(value)
        chosen = max(good, key=lambda each: pick(each.value))
        artifact = context.run(self.at(chosen.value), inputs)
        record = {
            "setting": self.setting,
            "chosen": chosen.value,
            "tries": [each.data() for each in tried],
            "step": self.step.plain(),
        }
        return context.written(lambda: _write(artifact, record, context))

    @property
    def _strongest_wins(self) -> bool:
        return set(self.budgets()) == {"min_quality"}

    def _strength(self, value: float) -> float:
        return value if self.stronger == "up" else -value

    def _tries(self, inputs: Inputs, context: Context) -> list[Tried]:
        """The wanted end of the range first, then halves between what is good and what is not."""
        mild, strong = (self.low, self.high) if self.stronger == "up" else (self.high, self.low)
        found: list[Tried] = []
        value = strong if self._strongest_wins else mild
        while len(found) < self.tries and value not in [each.value for each in found]:
            context.progress(len(found), self.tries, f"{self.setting} = {value:g}")
            found.append(self._try(value, inputs, context))
            met = self._met(found[-1])
            if met and len(found) == 1:
                break
            if self._strongest_wins == met:  # go stronger: quality is left over, or the file still costs too much
                mild = value
            else:
                strong = value
            value = self._between(mild, strong, [each.value for each in found])
        return found

    def _met(self, tried: Tried) -> bool:
        """Whether what decides the direction is kept: what the file costs, or its quality where that is all."""
        return tried.good if self._strongest_wins else not set(tried.measured.missed) - {"min_quality"}

    def _between(self, mild: float, strong: float, tried: Sequence[float]) -> float:
        """The middle; of two neighbouring whole numbers the one that was not tried."""
        middle = (mild + strong) / 2
        if not self.whole:
            return float(f"{middle:.6g}")
        near = float(round(middle))
        return next((end for end in (near, mild, strong) if end not in tried), near)

    def _try(self, value: float, inputs: Inputs, context: Context) -> Tried:
        """Runs the inner step and measures the file; an interrupted search takes what it has measured before."""
        step = self.at(value)
        artifact = context.run(step, inputs)
        asked, (metric, better) = self.budgets(), context.task.metric
        found = context.processes.shared(lambda: self._found(artifact, context.work / f"{step.name}.json", context))
        return Tried(value, Measured(asked, found, metric, better == "min"))

    def _found(self, artifact: Artifact, note: Path, context: Context) -> dict[str, float]:
        """What was measured, which is noted."""
        if note.is_file():
            found: dict[str, float] = read_json(note, dict[str, float])
            return found
        found = self._measured(artifact, context).found
        write_whole(note, json.dumps(found))
        return found

    def _measured(self, artifact: Artifact, context: Context) -> Measured:
        side, target = str(artifact.meta["side"]), Onnx()
        programs = context.task.reading(side).programs(load_model(artifact, given=context.given).module)
        with tempfile.TemporaryDirectory() as folder:
            path = target.write(programs, Path(folder))[MAIN]
            put_into(path, manual_of(context.task.reading(side), context.data.info))  # which ships too
            return measured(self, target, path, context, side)


def _write(artifact: Artifact, record: Mapping[str, Any], context: Context) -> Artifact:
    with writing(
        context.folder, kind="model", name=context.name, key=context.key, lineage=context.lineage, meta=artifact.meta
    ) as draft:
        shutil.copytree(artifact.folder, draft.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        draft.write_json(SEARCHED, finite(record))
        draft.scores.update(artifact.scores)
    return Artifact.load(context.folder)


def _part(key: str, full: Any, setting: str) -> Any:
    """What stands under a key of plain settings; ValueError names the nearest."""
    if not isinstance(full, Mapping) or key not in full:
        known = [each for each in full if each != "use"] if isinstance(full, Mapping) else []
        raise ValueError(f"setting {setting!r}: the step has no {key!r}; {did_you_mean(key, known)}")
    return full[key]


def _distance(tried: Tried) -> float:
    """How far a try is from its budgets, the relative misses added up."""
    seen = tried.measured
    return sum(max(0.0, seen.over(name)) / (abs(seen.asked[name]) or 1.0) for name in seen.found)
