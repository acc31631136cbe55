"""What was made smaller: the stages of a chain as the page shows them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from decoct.report import units
from decoct.report.chain import told
from decoct.report.charts import HEIGHT, Chart, coded, short, tooltip
from decoct.report.fields import Number
from decoct.report.records import Compression, LayerChange, Results, Sensitivity
from decoct.report.sentence import join, noun

VERBS = {
    "prune": "Pruned",
    "quantize": "Turned into integers",
    "qat": "Trained with rounded numbers",
    "rewrite": "Rewritten",
    "share": "Weights shared",
    "search": "Searched",
}
SETTINGS = ("ratio", "n", "m", "bits", "weight_bits", "clusters", "rank", "energy", "observer", "group", "groups")
"""Settings of a scheme that are told where they are set."""
SUMS = ("channels", "heads", "layers", "weights")
"""Units whose numbers are added up over the layers."""
SHOWN_LAYERS, SHOWN_BARS = 300, 60


@dataclass(frozen=True)
class Amount:
    """A cost before and after, and how many times it fell ("2.1× fewer"); empty where it is not known."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A small table: what it holds, its heading, its lines."""

    title: str
    heading: list[str]
    lines: list[list[str]]
    more: int = 0
    """Lines that are left out."""


@dataclass(frozen=True)
class Stage:
    """One step of the chain: its name, what was done in words, its costs, what else is to be said, tables, chart."""

    name: str
    source: str
    done: str
    parameters: Amount
    nonzero: Amount
    macs: Amount
    file: Amount
    says: list[str]
    tables: list[Table]
    chart: Chart | None


def stages(results: Results) -> list[Stage]:
    """The steps that made a model smaller, in the order of the recipe."""
    return [_stage(each, results) for each in results.compressions]


def _stage(each: Compression, results: Results) -> Stage:
    tables = [_layers(each), _left(each), _rounds(each, results), _tries(each, results)]
    says = [told(each.audit) if each.audit else "", _speed(each), _kept(each), _verified(each), _searched(each)]
    says.append(_budgets(each, results))
    return Stage(
        name=each.step,
        source=each.source,
        done=done(each),
        parameters=_amount(each.before.parameters, each.after.parameters, units.count, "fewer", "more"),
        nonzero=_amount(each.before.nonzero, each.after.nonzero, units.count, "fewer", "more"),
        macs=_amount(each.before.macs, each.after.macs, units.count, "fewer", "more"),
        file=_amount(each.before.file_bytes, each.after.file_bytes, units.size, "smaller", "larger"),
        says=[text for text in says if text],
        tables=[table for table in tables if table is not None],
        chart=sensitivity(each.step, each.sensitivity),
    )


def done(each: Compression) -> str:
    """What a step did, in words.

    >>> done(Compression(step="p", use="prune", scheme={"use": "channels", "ratio": 0.5},
    ...     changes=[LayerChange(path="a", kind="channels", before=16, after=8)]))
    'Pruned: channels, ratio 0.5; 16 to 8 channels in 1 of 1 layer'
    """
    verb = VERBS.get(each.use, units.label(each.use) if each.use else "Made smaller")
    scheme = str(each.scheme.get("use") or "").replace("_", " ")
    settings = [f"{name.replace('_', ' ')} {_plain(each.scheme[name])}" for name in SETTINGS if _set(each.scheme, name)]
    calibration = each.quantization.get("calibration")
    if isinstance(calibration, dict) and calibration:
        settings.append(f"calibrated on {calibration.get('samples')} {calibration.get('split')} samples")
    how = ", ".join([scheme, *settings] if scheme else settings)
    changes = _changes(each.changes)
    return "; ".join([f"{verb}: {how}" if how else verb, *([join(changes)] if changes else [])])


def _set(scheme: dict[str, Any], name: str) -> bool:
    value = scheme.get(name)
    return isinstance(value, int | float | str) and not isinstance(value, bool)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value).replace("_", " ")


def _changes(changes: Sequence[LayerChange]) -> list[str]:
    """For each unit how many layers changed, and by how much in all."""
    found = []
    for kind in dict.fromkeys(each.kind for each in changes):
        own = [each for each in changes if each.kind == kind and each.before is not None and each.after is not None]
        moved = [each for each in own if each.before != each.after]
        of = f"{len(moved)} of {len(own)} {'layer' if len(own) == 1 else 'layers'}"
        before, after = (math.fsum(getattr(each, name) or 0 for each in own) for name in ("before", "after"))
        if not own:
            continue
        if not moved:
            found.append(f"no layer changed in {kind}")
        elif kind in SUMS:
            place = "" if kind == "layers" else f" in {of}"
            found.append(f"{_number(before)} to {_number(after)} {kind}{place}")
        elif kind == "bits":
            found.append(
                f"{of} in {join([_number(bits) for bits in sorted({each.after or 0 for each in moved})])} bits"
            )
        else:
            found.append(f"{kind.replace('_', ' ')} of {of}")
    return found


def _amount(
    before: float | None, after: float | None, form: Callable[[float | None], str], less: str, more: str
) -> Amount:
    if before is None and after is None:
        return Amount(units.ABSENT)
    if before is None or after is None or before == after:
        return Amount(form(after if after is not None else before))
    text = f"{form(before)} → {form(after)}"
    if before <= 0 or after <= 0:
        return Amount(text)
    ratio = before / after
    return Amount(text, f"{times(ratio)}× {less}" if ratio > 1 else f"{times(1 / ratio)}× {more}")


def times(ratio: float) -> str:
    """How many times, of a ratio of at least 1; small ones with two decimals.

    >>> times(1.04), times(3.11)
    ('1.04', '3.1')
    """
    return f"{ratio:.2f}" if ratio < 1.95 else units.times(ratio)


def _layers(each: Compression) -> Table | None:
    if not each.changes:
        return None
    lines = [
        [c.path or "all", c.kind, _number(c.before), _number(c.after), c.note] for c in each.changes[:SHOWN_LAYERS]
    ]
    more = max(len(each.changes) - SHOWN_LAYERS, 0)
    return Table("Layer by layer", ["Layer", "Unit", "Before", "After", "Note"], lines, more)


def _left(each: Compression) -> Table | None:
    """The layers that do not compute in integers, and why."""
    if each.audit is None or not each.audit.outside:
        return None
    lines = [[k.layer, k.operator, k.runs or "float", k.cause] for k in each.audit.outside[:SHOWN_LAYERS]]
    more = max(len(each.audit.outside) - SHOWN_LAYERS, 0)
    return Table("Layers that do not compute in integers", ["Layer", "Operator", "Runs in", "Why"], lines, more)


def _rounds(each: Compression, results: Results) -> Table | None:
    if not each.rounds:
        return None
    heading = ["Round", "Parameters", "Not zero", "MACs"]
    scored = any(results.metric in one.scores for one in each.rounds)
    lines = [
        [str(number), *(units.count(n) for n in (one.after.parameters, one.after.nonzero, one.after.macs))]
        + ([units.score(one.scores.get(results.metric), results.metric)] if scored else [])
        for number, one in enumerate(each.rounds, start=1)
    ]
    return Table("Round by round", heading + ([f"Validation {noun(results.metric)}"] if scored else []), lines)


def _budgets(each: Compression, results: Results) -> str:
    kept = []
    for name, one in each.budgets.items():
        measured, asked = (_measure(name, value, results) for value in (one.measured, one.budget))
        kept.append(f"{_budget(name, results)} {measured} (asked: {asked})")
    return f"Budget: {join(kept)}." if kept else ""


def _tries(each: Compression, results: Results) -> Table | None:
    if not each.tries:
        return None
    names = list(dict.fromkeys(name for one in each.tries for name in one.budgets))
    lines = []
    for one in sorted(each.tries, key=lambda one: one.value or 0.0):
        measured = [one.budgets[name].measured if name in one.budgets else None for name in names]
        kept = "chosen" if one.value == each.chosen else "kept" if one.good else "missed"
        shown = [_measure(name, value, results) for name, value in zip(names, measured)]
        lines.append([_number(one.value), *shown, kept])
    heading = [each.setting or "Setting", *(_budget(name, results).capitalize() for name in names), "Budget"]
    return Table("Tries", heading, lines)


def _budget(name: str, results: Results) -> str:
    known = {"max_latency_ms": "latency", "max_size_bytes": "file"}
    return f"validation {noun(results.metric)}" if name == "min_quality" and results.metric else known.get(name, name)


def _measure(name: str, value: Number, results: Results) -> str:
    if name == "max_latency_ms":
        return units.milliseconds(value)
    return units.size(value) if name == "max_size_bytes" else units.score(value, results.metric)


def _verified(each: Compression) -> str:
    agreement, samples = each.verified.get("agreement"), each.verified.get("samples")
    if agreement is None:
        return ""
    of = f" of {samples:,.0f} samples" if samples else " of the samples checked"
    text = f"It answers as the float model does on {units.score(agreement, 'agreement')}{of}"
    sqnr = each.verified.get("sqnr_db")
    return text + (f"; signal to quantization noise {sqnr:.1f} dB." if sqnr is not None else ".")


def _speed(each: Compression) -> str:
    """How the file compares with its float file where it was written."""
    if not each.speed.ratio:
        return ""
    times = f"{units.milliseconds(each.speed.file_ms)} against {units.milliseconds(each.speed.float_ms)}"
    found = join(each.speed.words) if each.speed.words else "neither slower nor larger than float"
    return f"The file is {found} ({times} a call on one thread where it was written)."


def _kept(each: Compression) -> str:
    """The kinds of layers that stayed in float because that is faster."""
    kept = each.quantization.get("facts", {}).get("keep_float")
    if not isinstance(kept, dict) or not isinstance(kept.get("kinds"), dict):
        return ""
    if kept.get("whole"):
        return "No file in integers was as fast as the float file, so it was written in float."
    kinds = [f"{name} ({len(paths)})" for name, paths in kept["kinds"].items()]
    return f"Kept in float, since that was faster: {join(kinds)}." if kinds else ""


def _searched(each: Compression) -> str:
    if each.chosen is None:
        return ""
    count = f"{len(each.tries)} {'try' if len(each.tries) == 1 else 'tries'}"
    return f"{each.setting or 'The setting'} = {_number(each.chosen)} was chosen after {count}."


def sensitivity(step: str, costs: Sequence[Sensitivity]) -> Chart | None:
    """Bars: the noise that each layer makes when it alone computes in integers, the worst first."""
    known = [(each.layer, each.alone_db) for each in costs if each.alone_db is not None]
    if not known:
        return None
    shown = sorted(known, key=lambda each: each[1])[:SHOWN_BARS]
    names = [layer for layer, _ in shown]
    worst = f"The lowest is {names[0]} with {shown[0][1]:.1f} dB"
    summary = (
        "Signal to quantization noise of the answers when this layer alone computes in integers; a short bar is a "
        f"layer that costs much. {worst}; the highest is {names[-1]} with {shown[-1][1]:.1f} dB."
    )
    spec = {
        "height": max(min(HEIGHT, 120), 18 * len(shown)),
        "mark": {"type": "bar"},
        "encoding": {
            "y": {
                "field": "layer",
                "type": "nominal",
                "sort": None,
                "title": None,
                "axis": {"labelLimit": 170, "labelOverlap": False},
            },
            "x": {"field": "x", "type": "quantitative", "title": "signal to noise (dB)", "scale": {"zero": True}},
            "tooltip": tooltip({"layer": "layer", "x": "dB"}),
        },
    }
    scores = any(each.alone_score is not None for each in costs)
    of = {each.layer: each.alone_score for each in costs}
    table = [["Layer", "Alone in integers", *(["Validation score then"] if scores else [])]]
    table += [
        [layer, f"{db:.1f} dB", *([_number(of[layer])] if scores else [])]  # errors count as negative
        for layer, db in shown
    ]
    data = {"layer": coded(names), "x": [short(db) for _, db in shown]}
    return Chart(f"Sensitivity of the layers of {step}", summary, spec, data, len(shown), table)


def _number(value: float | None) -> str:
    """A number as it is, whole ones with separators."""
    if value is None:
        return units.ABSENT
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
