"""How the figures of a run were measured, and what its steps took."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from decoct.report import units
from decoct.report.records import Latency, Results, StepRecord


@dataclass(frozen=True)
class StepView:
    """One recipe step over all its seeds: name and kind, time of each seed and of all, what was skipped and why."""

    name: str
    use: str
    time: str
    total: str
    state: str
    why: str


def facts(results: Results) -> list[tuple[str, str]]:
    """What a reader must know to trust or repeat the figures, as pairs of heading and text."""
    data = " ".join(str(results.data.get(key, "")) for key in ("use", "path")).strip()
    fingerprint = str(results.data.get("fingerprint", ""))
    found = [
        ("Data", data + (f" (fingerprint {fingerprint[:16]})" if fingerprint else "")),
        ("Stored answers", "; ".join(f"{each.step}: {each.summary}" for each in results.stores)),
        ("Quality", _quality(results)),
        ("Latency", "; ".join(_each(_latency(m.latency) for m in results.models if m.latency))),
        (
            "Seeds",
            ", ".join(str(seed) for seed in results.seeds) or ("" if results.seed is None else str(results.seed)),
        ),
        ("Device", results.device),
        ("Machine", _pairs({k: v for k, v in results.machine.items() if k != "versions"})),
        ("Wall time", "" if results.wall_s is None else units.seconds(results.wall_s)),
        ("Versions", _pairs({"decoct": results.decoct, **results.versions} if results.decoct else results.versions)),
    ]
    return [(name, text) for name, text in found if text.strip()]


def step_views(steps: Sequence[StepRecord]) -> list[StepView]:
    """The steps in order, their seeds joined."""
    by_name: dict[str, list[StepRecord]] = {}
    for step in steps:
        by_name.setdefault(step.name, []).append(step)
    return [_step(records) for records in by_name.values()]


def _step(records: list[StepRecord]) -> StepView:
    times = [record.wall_s for record in records if record.wall_s is not None and not record.state]
    skipped = sum(bool(record.skipped) for record in records)
    ended = " and ".join(_each(record.state for record in records))
    state = (
        ended or "run"
        if not skipped
        else "skipped"
        if skipped == len(records)
        else f"{skipped} of {len(records)} skipped"
    )
    if len(records) > 1 and skipped in {0, len(records)}:
        state += f", {len(records)} seeds"
    mean = units.seconds(sum(times) / len(times)) if times else units.ABSENT
    total = units.seconds(sum(times)) if times else units.ABSENT
    left_out = _each(f"left out: {record.left_out}" if record.left_out else "" for record in records)
    stopped = _each(f"stopped early: {record.stopped}" if record.stopped else "" for record in records)
    why = "; ".join([*_each(record.why or "" for record in records), *stopped, *left_out])
    return StepView(records[0].name, records[0].use, mean, total, state, why)


def _quality(results: Results) -> str:
    splits = _each(
        f"{model.split or 'evaluation'} split" + (f", {model.n:,} samples" if model.n else "")
        for model in results.models
    )
    told = "; ".join(splits)
    if told and any(model.quality_sd for model in results.models):
        told += f"; mean ± standard deviation over {len(results.seeds)} seeds where ± is written"
    return told


def _latency(latency: Latency) -> str:
    parts = [latency.runtime]
    parts += [] if latency.threads is None else [_counted(latency.threads, "thread")]
    parts += [] if latency.batch is None else [f"batch of {latency.batch}"]
    parts += [] if latency.repeats is None else [_counted(latency.repeats, "repeat")]
    return ", ".join(part for part in parts if part)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(_pair(key, value) for key, value in values.items() if value not in ("", None))


def _pair(key: str, value: Any) -> str:
    if key.endswith("_bytes") and isinstance(value, int | float):
        return f"{key.removesuffix('_bytes').replace('_', ' ')} {units.size(value)}"
    return f"{key.replace('_', ' ')} {_plain(value)}"


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(_plain(each) for each in value)
    if isinstance(value, dict):
        return "(" + _pairs(value) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _each(texts: Iterable[str]) -> list[str]:
    return [text for text in dict.fromkeys(texts) if text]
