"""Limits: what the chain of a run as a whole must keep, and each of its artifacts measured against them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from decoct.artifact import Artifact
from decoct.errors import DecoctError
from decoct.meters.latency import timings
from decoct.meters.memory import peak_memory
from decoct.models.interface import MAIN
from decoct.models.saving import load_model
from decoct.outputs import Batch
from decoct.steps.base import Context
from decoct.steps.learning.batches import few, scores
from decoct.steps.limits import Limits
from decoct.steps.shipping.asking import manual_of, put_into
from decoct.steps.shipping.budgets import REPEATS, SECONDS, WARMUP, digits
from decoct.steps.shipping.candidates import Candidate, open_candidate, session_predictor
from decoct.targets.onnx import Onnx
from decoct.threads import in_threads


@dataclass(frozen=True)
class Held:
    """An artifact held against limits: what was `asked` and `found` by name, None where nothing could be measured.

    `metric`: that of the quality loss; `quantile`: that of the latency.
    """

    asked: Mapping[str, float]
    found: Mapping[str, float | None]
    metric: str
    quantile: float = 0.5

    def over(self, name: str) -> float | None:
        """By how much a limit is broken, in its own unit; 0 or less where it is kept, None where nobody knows."""
        found = self.found.get(name)
        return None if found is None else found - self.asked[name]

    @property
    def broken(self) -> list[str]:
        """The names of the limits that are not kept; what was not measured, or is not finite, is not."""
        return [name for name in self.asked if (over := self.over(name)) is None or not over <= 0]

    @property
    def distance(self) -> float:
        """How far it is from the limits: the relative misses added up; infinite where one is not known."""
        overs = [(self.over(name), self.asked[name]) for name in self.broken]
        return sum(float("inf") if over is None else over / (asked or 1.0) for over, asked in overs)

    def words(self) -> list[str]:
        """One sentence for each limit that is broken.

        >>> Held({"max_size_bytes": 100.0}, {"max_size_bytes": 130.0}, "accuracy").words()
        ['max_size_bytes: it takes 130 bytes, 30 above 100']
        """
        return [f"{name}: {self._miss(name)}" for name in self.broken]

    def _miss(self, name: str) -> str:
        found, over, asked = self.found.get(name), self.over(name), self.asked[name]
        if found is None or over is None:
            return "it could not be measured"
        if name == "max_quality_loss":
            lost = f"it loses {digits(found)} of {self.metric} on validation data"
            return f"{lost}, {digits(over)} above {asked:g}"
        if name == "max_latency_ms":
            at = (
                "half of the calls take up to"
                if self.quantile == 0.5
                else f"{100 * self.quantile:g}% of the calls take up to"
            )
            return f"{at} {digits(found)} ms, {digits(over)} above {digits(asked)}"
        what = "it takes" if name == "max_size_bytes" else "running it takes"
        return f"{what} {found:.0f} bytes, {over:.0f} above {asked:.0f}"


def held(limits: Limits, artifact: Artifact, context: Context, reference: float | None) -> dict[str, float | None]:
    """What an artifact of kind model, exported or estimator has of each limit that is set, by running its file.

    `reference`: the teacher's validation score of the main metric.
    """
    asked = limits.asked()
    with ExitStack() as stack, in_threads(1):
        opened = _opened(artifact, context, stack)
        found: dict[str, float | None] = {}
        if "max_quality_loss" in asked:
            found["max_quality_loss"] = None if reference is None else _loss(opened, context, reference)
        one = _one(context)
        if "max_latency_ms" in asked:
            calls = timings({"it": opened.call(one)}, repeats=REPEATS, warmup=WARMUP, seconds=SECONDS)["it"]
            found["max_latency_ms"] = float(np.quantile(np.concatenate(calls) / 1e6, limits.quantile))
        if "max_size_bytes" in asked:
            found["max_size_bytes"] = float(sum(each.stat().st_size for each in opened.files))
        if "max_memory_bytes" in asked:
            runs = opened.runtime == Onnx().runtime
            found["max_memory_bytes"] = float(peak_memory(opened.path, opened.feed(one))) if runs else None
    return found


def quality(artifact: Artifact, context: Context) -> float:
    """The task's main metric on validation data, by running what ships of the artifact."""
    with ExitStack() as stack, in_threads(1):
        return scores(_opened(artifact, context, stack).predict, context, "validation")[context.task.metric[0]]


def _loss(opened: Candidate, context: Context, reference: float) -> float:
    name, better = context.task.metric
    score = scores(opened.predict, context, "validation")[name]
    return reference - score if better == "max" else score - reference


def _one(context: Context) -> Batch:
    return Batch(few(context, 1, "validation" if "validation" in context.data.splits else "train").inputs)


def _opened(artifact: Artifact, context: Context, stack: ExitStack) -> Candidate:
    """The artifact by what runs it; of a model the float ONNX file that it would become, itself where it cannot."""
    opened = open_candidate(artifact, context, 1)
    if artifact.kind != "model":
        return opened
    target, reading = Onnx(), context.task.reading(str(artifact.meta["side"]))
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    try:
        module = load_model(artifact, given=context.given).module
        path = target.write(reading.programs(module), folder)[MAIN]
        put_into(path, manual_of(reading, context.data.info))  # which ships too
    except DecoctError:
        return opened
    session = target.load(path, threads=1)
    return replace(
        opened,
        path=path,
        runtime=target.runtime,
        predict=session_predictor(session, reading),
        feed=reading.feed,
        run=session,
        files=target.files(path),
    )
