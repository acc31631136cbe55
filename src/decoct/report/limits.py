"""What of a run kept its limits: the artifact that is kept, which step broke which limit and by how much."""

from __future__ import annotations

from dataclasses import dataclass

from decoct.report import units
from decoct.report.records import HeldRecord, LimitsRecord, ModelRecord, Results

LABELS = {
    "max_quality_loss": "Quality lost",
    "max_latency_ms": "Latency",
    "max_size_bytes": "File",
    "max_memory_bytes": "Memory",
}


@dataclass(frozen=True)
class LimitCell:
    """What a step has of one limit, and by how much it breaks it, as text; empty where it keeps it."""

    text: str
    over: str = ""


@dataclass(frozen=True)
class LimitRow:
    """One artifact of the chain: its step, what it has of each limit, and whether it is kept."""

    step: str
    cells: list[LimitCell]
    state: str


@dataclass(frozen=True)
class LimitsView:
    """The table of a run's limits: a heading a limit with what was asked, a row an artifact, and how it is meant."""

    headings: list[tuple[str, str]]
    rows: list[LimitRow]
    says: str


def limits_view(results: Results) -> LimitsView | None:
    """The table; None for a run without limits."""
    found = results.limits
    if found is None or not found.asked:
        return None
    headings = [
        (LABELS.get(name, name), f"at most {_amount(found, name, asked)}") for name, asked in found.asked.items()
    ]
    return LimitsView(headings, [_row(found, each) for each in found.steps], _meaning(found))


def kept_of(results: Results) -> ModelRecord | None:
    """The model that is kept, as it was measured: by the benchmark, else against the limits alone; None without one."""
    found = results.limits
    held = found.held(found.kept) if found is not None else None
    if found is None or held is None:
        return None
    measured = [each for each in results.models if each.step == held.step]
    if measured:
        return measured[-1]
    quality = {}
    loss = held.found.get("max_quality_loss")
    if loss is not None and found.reference_quality is not None:
        less = units.less_is_better(found.metric, results.task.direction)
        quality = {found.metric: found.reference_quality + (loss if less else -loss)}
    return ModelRecord(
        name=held.step,
        step=held.step,
        path=held.path,
        artifact=held.artifact,
        quality=quality,
        split="validation",
        file_bytes=held.found.get("max_size_bytes"),
    )


def told(results: Results) -> tuple[str, str] | None:
    """What became of the limits, as sentences, and the tone they are meant in; None for a run without limits."""
    found = results.limits
    if found is None or not found.asked:
        return None
    if not found.steps:
        return "No artifact of the chain was reached that could keep the limits.", "worse"
    held = found.held(found.kept)
    if held is None:
        near = found.held(found.nearest)
        came = f" The nearest is {near.step} ({near.path}): {'; '.join(near.words)}." if near is not None else ""
        return f"No artifact of this run keeps its limits, so none is kept.{came}", "worse"
    after = found.steps[found.steps.index(held) + 1 :]
    text = f"Kept is {held.step} ({held.path}), the last artifact of the chain that keeps the limits."
    broke = "".join(f" {each.step} broke {'; '.join(each.words)}." for each in after)
    return text + broke, "warning" if after else "better"


def _row(found: LimitsRecord, each: HeldRecord) -> LimitRow:
    cells = []
    for name in found.asked:
        value, over = each.found.get(name), each.broken.get(name)
        text = "not measured" if value is None else _amount(found, name, value)
        cells.append(LimitCell(text, f"{_amount(found, name, over)} too much" if over is not None else ""))
    state = "kept" if each.step == found.kept else "breaks " + ", ".join(each.broken) if each.broken else "keeps them"
    return LimitRow(each.step, cells, state)


def _amount(found: LimitsRecord, name: str, value: float) -> str:
    if name == "max_latency_ms":
        return units.milliseconds(value)
    if name == "max_quality_loss":
        sign = units.MINUS if value < 0 else ""
        return f"{sign}{units.spread(abs(value), found.metric)}" + (" points" if units.is_share(found.metric) else "")
    return units.size(value)


def _meaning(found: LimitsRecord) -> str:
    parts = ["Each artifact of the chain under the first seed, by running the file that it ships as."]
    if "max_quality_loss" in found.asked:
        than = f" ({found.reference})" if found.reference else ""
        parts.append(f"Quality lost is {units.label(found.metric)} on validation data against the teacher's{than}.")
    if "max_latency_ms" in found.asked and found.quantile is not None:
        parts.append(f"Latency is of one sample on one thread, at quantile {found.quantile:g} of the calls.")
    return " ".join(parts)
