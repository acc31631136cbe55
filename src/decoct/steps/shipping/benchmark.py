"""Benchmark: what each model is worth and what it costs, measured on the file that ships."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from decoct.artifact import Artifact, writing
from decoct.data.base import Split
from decoct.data.shown import shown
from decoct.errors import DataError, RecipeError, did_you_mean
from decoct.meters.latency import Latency, measure
from decoct.meters.machine import machine
from decoct.meters.memory import peak_memory
from decoct.meters.size import file_bytes
from decoct.outputs import Batch, Outputs
from decoct.steps.base import Context, Inputs, Step
from decoct.steps.learning.batches import evaluation_batches, splits_of
from decoct.steps.records import RECORDS
from decoct.steps.shipping.candidates import Candidate, kernels_of, open_candidate, source_of, speed_of
from decoct.steps.shipping.compared import compared
from decoct.steps.shipping.export import head
from decoct.tasks.answers.base import IGNORED, Answer, Scores, dense
from decoct.tasks.answers.details import Details
from decoct.threads import in_threads

MAIN_PAIR = ("student", "student_alone")
CALIBRATION = ("ece",)
EXAMPLES = 12
"""Samples shown by default."""


@dataclass(frozen=True)
class Judged:
    """What one artifact scored on the split."""

    seed: int
    quality: Mapping[str, float]
    calibration: Mapping[str, float]
    fidelity: Mapping[str, float]
    confusion: dict[str, Any] | None = None


class Benchmark(Step):
    """Measures models side by side: quality, fidelity to the reference, calibration, size, memory and latency.

    An exported artifact or an estimator is measured by running its file, a model that was not exported in eager torch.
    `split` is what quality is measured on; `batch` samples a call, `threads`, `repeats` calls after `warmup`, for
    `seconds` at most, all models in turn; `reference` is the model that fidelity is measured to; `compare` lists pairs
    [better, than] (student and student_alone where both are there). Of several seeds, quality is the mean and latency
    the first's. `examples`: so many samples on which the student and the reference differ are shown on the page; 0
    keeps all samples off it.
    """

    use: ClassVar[str] = "benchmark"
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {"*": ("exported", "model", "estimator")}
    gives: ClassVar[str] = "records"
    machine_bound: ClassVar[bool] = True

    name: str = "benchmark"
    threads: int = Field(default=1, ge=1, le=1024)
    batch: int = Field(default=1, ge=1, le=1 << 20)
    repeats: int = Field(default=200, ge=1, le=10_000_000)
    warmup: int = Field(default=20, ge=0, le=10_000_000)
    seconds: float | None = Field(default=30.0, gt=0)
    split: str = "test"
    reference: str | None = "teacher"
    compare: tuple[tuple[str, str], ...] | None = None
    examples: int = Field(default=EXAMPLES, ge=0, le=200, exclude_if=lambda value: value == EXAMPLES)

    def run(self, inputs: Inputs, context: Context) -> Artifact:
        artifacts = {name: _by_seed(value, context.run_seed) for name, value in inputs.items()}
        self._check_names(artifacts)
        with in_threads(self.threads):
            records, examples = self._records(artifacts, context)
        result = {
            "models": list(records.values()),
            "comparisons": [
                compared(records[better], records[than], context.task.metric) for better, than in self._pairs(records)
            ],
            **({"examples": examples} if examples else {}),
            "machine": machine(),
        }
        with writing(
            context.folder, kind="records", name=context.name, key=context.key, lineage=context.lineage
        ) as draft:
            draft.write_json(RECORDS, finite(result))
        return Artifact.load(context.folder)

    def _records(
        self, artifacts: Mapping[str, Mapping[int, Artifact]], context: Context
    ) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        """The record of each model, and samples on which the student and the reference differ."""
        opened = {
            name: {seed: open_candidate(artifact, context, self.threads) for seed, artifact in seeds.items()}
            for name, seeds in artifacts.items()
        }
        looked = self._details(opened, context)
        judged, count = self._judged(opened, looked, context)
        first = {name: next(iter(seeds.values())) for name, seeds in opened.items()}
        context.progress(1, 2, "latency")
        small = self._small(context)
        latencies = measure(
            {name: candidate.call(small) for name, candidate in first.items()},
            repeats=self.repeats,
            warmup=self.warmup,
            seconds=self.seconds,
        )
        records = {
            name: {
                "name": name,
                "step": candidate.artifact.name,
                "path": candidate.artifact.folder.name,
                "artifact": f"{candidate.artifact.folder.name}/{candidate.path.name}",
                "split": self.split,
                "n": count,
                **_summary(judged[name]),
                **self._costs(candidate, small),
                "latency": self._latency(latencies[name], candidate, small),
                "confusion": judged[name][0].confusion,
                **({"classes": looked[name].by_class()} if name in looked else {}),
            }
            for name, candidate in first.items()
        }
        return records, self._apart(looked, context)

    def _details(self, opened: Mapping[str, Any], context: Context) -> Mapping[str, Details]:
        """A closer look at each model under its first seed; at none where answers have no such look."""
        found = {name: context.task.answer.details() for name in opened}
        return {name: each for name, each in found.items() if each is not None}

    def _apart(self, looked: Mapping[str, Details], context: Context) -> dict[str, Any]:
        """Samples on which the student and the reference differ, as people look at them; empty where none are shown."""
        others = [name for name in looked if name != self.reference]
        split = splits_of(context).get(self.split)
        if not (self.examples and others and self.reference in looked and isinstance(split, Split)):
            return {}
        name = MAIN_PAIR[0] if MAIN_PAIR[0] in others else others[-1]
        count, found = looked[name].apart(self.examples)
        items = [{**each, "shown": shown(context.data, split, each["index"])} for each in found]
        return {"model": name, "reference": self.reference, "split": self.split, "apart": count, "items": items}

    def _judged(
        self, opened: Mapping[str, Mapping[int, Candidate]], looked: Mapping[str, Details], context: Context
    ) -> tuple[dict[str, list[Judged]], int]:
        """What each model scored under each seed, in one pass over the split; and how many samples that was."""
        tallies = {(name, seed): context.task.answer.tally() for name, seeds in opened.items() for seed in seeds}
        reference = opened.get(self.reference or "", {})
        count = 0
        for batch in evaluation_batches(context, self.split):
            count += len(batch)
            context.progress(0, 2, f"quality on {count} samples")
            known = {seed: candidate.predict(batch) for seed, candidate in reference.items()}
            for (name, seed), tally in tallies.items():
                own = name == self.reference
                said = known[seed] if own else opened[name][seed].predict(batch)
                other = None if own else _partner(known, seed)
                tally.add(batch, said, other)
                if name in looked and seed == next(iter(opened[name])):
                    target = _target(context.task.answer, batch)
                    looked[name].add(dense(said), target, None if other is None else dense(other))
        found: dict[str, list[Judged]] = {}
        for (name, seed), tally in tallies.items():
            found.setdefault(name, []).append(_judge(seed, tally.scores()))
        return found, count

    def _small(self, context: Context) -> Batch:
        """As many samples as one call takes."""
        small = head(next(iter(evaluation_batches(context, self.split))), self.batch)
        if len(small) < self.batch:
            raise RecipeError(
                f"batch is {self.batch}, the first batch of {self.split} has {len(small)}; give at most that"
            )
        return small

    def _costs(self, candidate: Candidate, small: Batch) -> dict[str, Any]:
        peak = None
        if candidate.runtime == "onnxruntime":
            peak = peak_memory(candidate.path, candidate.feed(small), threads=self.threads)
        kernels = kernels_of(candidate)
        return {
            "source": source_of(candidate.artifact),
            "quantized": bool(kernels),
            "kernels": kernels,
            **speed_of(candidate),
            "parameters": candidate.parameters,
            "macs": candidate.macs,
            "file_bytes": sum(file_bytes(each) for each in candidate.files),
            "peak_memory_bytes": peak,
            "verified": candidate.artifact.meta.get("verified", {}),
        }

    def _latency(self, found: Latency, candidate: Candidate, small: Batch) -> dict[str, Any]:
        return {
            "runtime": candidate.runtime,
            "threads": self.threads,
            "batch": self.batch,
            "shapes": {name: list(value.shape) for name, value in candidate.feed(small).items()},
            "p50_ms": found.p50_ms,
            "p99_ms": found.p99_ms,
            "min_ms": found.min_ms,
            "mean_ms": found.mean_ms,
            "repeats": found.repeats,
            "noisy": found.noisy,
            "reason": found.reason,
            "load": found.load,
            "throughput_per_s": 1e3 * self.batch / found.mean_ms,
        }

    def _check_names(self, artifacts: Mapping[str, Any]) -> None:
        if not artifacts:
            raise RecipeError("benchmark.inputs: empty; name the models to measure")
        named = [("compare", name) for pair in self.compare or () for name in pair]
        if self.reference is not None and "reference" in self.model_fields_set:
            named.append(("reference", self.reference))
        for setting, name in named:
            if name not in artifacts:
                raise RecipeError(f"benchmark.{setting}: {name!r} is no input; {did_you_mean(name, artifacts)}")

    def _pairs(self, records: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
        if self.compare is not None:
            return self.compare
        return [MAIN_PAIR] if set(MAIN_PAIR) <= set(records) else []


def finite(value: Any) -> Any:
    """The same data with None for numbers that are not finite, and NumPy's numbers as Python's."""
    if isinstance(value, Mapping):
        return {str(key): finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _by_seed(value: Any, seed: int) -> dict[int, Artifact]:
    """The artifacts of one model by seed, from one artifact, a list, or (seed, artifact) pairs."""
    found: dict[int, Artifact] = {}
    for each in value if isinstance(value, list | tuple) else [value]:
        own, artifact = each if isinstance(each, tuple) else (None, each)
        if not isinstance(artifact, Artifact):
            raise RecipeError(f"benchmark.inputs: {type(artifact).__name__} is no artifact; name a step that gives one")
        own = artifact.meta.get("seed", seed) if own is None else own
        found.setdefault(int(own), artifact)
    return found


def _judge(seed: int, found: Scores) -> Judged:
    if not found.quality:
        raise DataError("there is no labelled sample to score on")
    confusion = None
    if found.confusion is not None:
        names, matrix = found.confusion
        confusion = {"labels": list(names), "matrix": matrix.tolist()}
    return Judged(
        seed,
        {name: value for name, value in found.quality.items() if name not in CALIBRATION},
        {name: value for name, value in found.quality.items() if name in CALIBRATION},
        found.fidelity,
        confusion,
    )


def _target(answer: Answer, batch: Batch) -> np.ndarray:
    """The target of a batch as an array, -100 or NaN where it must not be used."""
    target: np.ndarray = batch.target.cpu().numpy().copy()
    target[~answer.labelled(batch).cpu().numpy()] = np.nan if target.dtype.kind == "f" else IGNORED
    return target


def _partner(reference: Mapping[int, Outputs], seed: int) -> Outputs | None:
    """What the reference said under the same seed, or its only one."""
    return reference.get(seed, next(iter(reference.values()))) if reference else None


def _summary(judged: Sequence[Judged]) -> dict[str, Any]:
    quality = [each.quality for each in judged]
    return {
        "quality": _mean(quality),
        "quality_sd": _deviation(quality) if len(judged) > 1 else {},
        "seeds": [each.seed for each in judged],
        "per_seed": [
            {"seed": each.seed, "quality": dict(each.quality), "fidelity": dict(each.fidelity)} for each in judged
        ],
        "fidelity": _mean([each.fidelity for each in judged]),
        "calibration": _mean([each.calibration for each in judged]),
    }


def _mean(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([each[name] for each in scores])) for name in _shared(scores)}


def _deviation(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.std([each[name] for each in scores], ddof=1)) for name in _shared(scores)}


def _shared(scores: Sequence[Mapping[str, float]]) -> list[str]:
    return [name for name in scores[0] if all(name in each for each in scores)]
