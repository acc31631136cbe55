"""Pictures as Vega-Lite specifications, with their data apart and compact.

Names from files stand in data and in scale domains only, never in expressions or field names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from decoct.report import units
from decoct.report.colours import Colours
from decoct.report.curves import TOTAL, Curve, Log, thinned

POINTS = 500
"""Most points of a curve."""
WIDE = 80.0
"""Losses whose largest value is this many times the smallest are drawn on a logarithmic axis."""
HEIGHT = 240
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left"]
DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 4], [4, 1, 1, 1], [1, 3], [10, 2, 2, 2, 2, 2]]

Json = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """A picture: its heading, what it says in words, its specification without data, its data by column."""

    title: str
    summary: str
    spec: Json
    data: Mapping[str, Any]
    rows: int
    table: Sequence[Sequence[str]] = field(default=())
    """The numbers as a table, its heading first."""
    deviations: bool = False
    """Whether standard deviations are drawn."""


def training(log: Log, colours: Colours, limit: int = POINTS) -> list[Chart]:
    """Losses by term, one chart a step; then weights that change and other scheduled settings; then learning rates.

    What was logged once is no curve; `logged_once` says it.
    """
    losses, scheduled, agreement, say = map(_by_step, (log.losses, log.weights, log.agreement, log.say))
    charts = [_losses(step, curves, colours, limit) for step, curves in losses.items()]
    for step in losses:
        weights, settings = _weights_and_settings(scheduled.get(step, []))
        if any(curve.varies() for curve in weights):
            summary = f"Weight of each term of {step} over its optimizer steps. {_ends(weights)}"
            charts.append(_lines(f"Weights of {step}", summary, weights, colours, limit, y="weight", by="name"))
        for setting, curves in settings.items():
            summary = f"Scheduled {setting} of {step} over its optimizer steps. {_ends(curves)}"
            title = f"{setting.capitalize()} of {step}"
            charts.append(_lines(title, summary, curves, colours, limit, y=setting, by="name"))
        charts += _teachers(step, agreement.get(step, []), say.get(step, []), colours, limit)
    rates = [curve for curve in log.rates if curve.varies()]
    if rates:
        summary = f"Learning rate of each step. {_ends(rates, 'step')}"
        charts.append(_lines("Learning rate", summary, rates, colours, limit, y="learning rate", by="step"))
    return [chart for chart in charts if chart is not None]


def logged_once(log: Log, metric: str) -> list[str]:
    """What has one value and so no picture, a sentence a step, as of runs that were short."""
    found = []
    for step, own in _by_step(log.losses).items():
        if not any(_drawn(curve) for curve in own):
            found.append(f"Loss of {step}, logged once: {_values(own)}.")
    name, curves = _validated(log, metric)
    if curves and not any(_drawn(curve) for curve in curves):
        found.append(f"{units.label(name)} on validation data, measured once: {_values(curves, 'step', name)}.")
    return found


def _by_step(curves: Iterable[Curve]) -> dict[str, list[Curve]]:
    found: dict[str, list[Curve]] = {}
    for curve in curves:
        found.setdefault(curve.step, []).append(curve)
    return found


def _drawn(curve: Curve) -> bool:
    """Whether a curve has two points that a line can join."""
    return len(curve.x) > 1


def _values(curves: Sequence[Curve], by: str = "name", metric: str = "") -> str:
    told: dict[str, str] = {}
    for curve in curves:
        value = units.score(curve.y[-1], metric) if metric else units.significant(curve.y[-1])
        told.setdefault(getattr(curve, by), f"{getattr(curve, by)} {value}")
    return ", ".join(list(told.values())[:8])


def _teachers(step: str, agreement: list[Curve], say: list[Curve], colours: Colours, limit: int) -> list[Chart | None]:
    """Of several teachers: who agrees with whom, and how much each counts where that changes."""
    charts = []
    if agreement:
        summary = f"Share of samples on which the student and each teacher agree, in {step}. {_ends(agreement)}"
        title = f"Agreement in {step}"
        charts.append(_lines(title, summary, agreement, colours, limit, y="agreement", by="name", share=True))
    if any(curve.varies() for curve in say):
        summary = f"How much each teacher counts in {step}. {_ends(say)}"
        charts.append(_lines(f"Teachers of {step}", summary, say, colours, limit, y="weight", by="name", share=True))
    return charts


def _weights_and_settings(curves: Sequence[Curve]) -> tuple[list[Curve], dict[str, list[Curve]]]:
    """The weights of terms; and by setting their other scheduled numbers (TERM.SETTING in the log) that change."""
    names = {curve.name for curve in curves}
    weights: list[Curve] = []
    settings: dict[str, list[Curve]] = {}
    for curve in curves:
        term = next((name for name in names if curve.name.startswith(f"{name}.")), None)
        if term is None:
            weights.append(curve)
        elif curve.varies():
            settings.setdefault(curve.name.rpartition(".")[2].replace("_", " "), []).append(curve)
    return weights, settings


def validation(log: Log, metric: str, colours: Colours, limit: int = POINTS) -> Chart | None:
    """The main metric on validation data, one line a step and seed; None where no step measured it twice."""
    name, curves = _validated(log, metric)
    if not curves:
        return None
    label = units.label(name)
    summary = f"{label} on validation data over the optimizer steps. {_ends(curves, 'step', name)}"
    return _lines(
        f"{label} on validation data",
        summary,
        curves,
        colours,
        limit,
        y=label,
        by="step",
        points=True,
        share=units.is_share(name),
    )


def _validated(log: Log, metric: str) -> tuple[str, list[Curve]]:
    """The main metric, or else the first that was measured on validation data, and its curves."""
    names = [curve.name for curve in log.validation]
    name = metric if metric in names or not names else names[0]
    return name, [curve for curve in log.validation if curve.name == name]


def heat(title: str, labels: Sequence[str], matrix: Sequence[Sequence[float]]) -> Chart | None:
    """A large confusion matrix: colour by share of the true class, counts on pointing; None where it counts nothing."""
    cells = [
        (str(labels[i]), str(labels[j]), n, n / total)
        for i, row in enumerate(matrix)
        if (total := sum(row))
        for j, n in enumerate(row)
        if n
    ]
    if not cells:
        return None
    domain = [str(label) for label in labels]
    axis = {"labelOverlap": True, "grid": False}
    spec = {
        "height": max(240, 11 * len(domain)),
        "mark": {"type": "rect", "tooltip": True},
        "encoding": {
            "x": {"field": "answer", "type": "nominal", "sort": None, "scale": {"domain": domain}, "axis": axis},
            "y": {"field": "true", "type": "nominal", "sort": None, "scale": {"domain": domain}, "axis": axis},
            "color": {
                "field": "share",
                "type": "quantitative",
                "scale": {"type": "sqrt", "domain": [0, 1]},
                "title": "share of class",
            },
            "tooltip": tooltip({"true": "true class", "answer": "answer", "n": "samples"}),
        },
    }
    columns = [list(column) for column in zip(*cells)]
    data = {
        "true": coded(columns[0]),
        "answer": coded(columns[1]),
        "n": columns[2],
        "share": list(map(short, columns[3])),
    }
    return Chart(title, f"{title}: rows are true classes, columns are answers.", spec, data, len(cells))


def _losses(step: str, curves: list[Curve], colours: Colours, limit: int) -> Chart | None:
    terms = list(dict.fromkeys(curve.name for curve in curves))
    if len(terms) == 2 and TOTAL in terms and _equal(curves):
        curves = [curve for curve in curves if curve.name != TOTAL]
    summary = f"Training loss of {step} by term over its optimizer steps. {_ends(curves)}"
    return _lines(f"Loss of {step}", summary, curves, colours, limit, y="loss", by="name")


def _equal(curves: list[Curve]) -> bool:
    """Whether the only term is the total."""
    by_seed: dict[int, list[Curve]] = {}
    for curve in curves:
        by_seed.setdefault(curve.seed, []).append(curve)
    pairs = [pair for pair in by_seed.values() if len(pair) == 2]
    return all(
        a.x == b.x and all(math.isclose(p, q, rel_tol=1e-5) for p, q in zip(a.y, b.y)) for a, b in pairs
    ) and bool(pairs)


def _lines(
    title: str,
    summary: str,
    curves: list[Curve],
    colours: Colours,
    limit: int,
    *,
    y: str,
    by: str,
    points: bool = False,
    share: bool = False,
) -> Chart | None:
    """A line chart of curves, one colour and dash a group (`by` "name" or "step"), one line a seed; None where no curve
    has two points."""
    if not any(_drawn(curve) for curve in curves):
        return None
    curves = [thinned(curve, limit) for curve in curves]
    groups = list(dict.fromkeys(getattr(curve, by) for curve in curves))
    rows = [(getattr(curve, by), curve.seed, x, value) for curve in curves for x, value in zip(curve.x, curve.y)]
    seeds = len({curve.seed for curve in curves})
    data = {
        "group": coded([row[0] for row in rows]),
        "seed": coded([str(row[1]) for row in rows]),
        "x": [short(row[2]) for row in rows],
        "y": [short(row[3]) for row in rows],
    }
    values = [row[3] for row in rows]
    log = min(values) > 0 and max(values) / min(values) > WIDE
    axis = {"format": "~%"} if share else {"format": "~g"}
    encoding = {
        "x": {"field": "x", "type": "quantitative", "title": "optimizer step", "scale": {"nice": False, "zero": False}},
        "y": {
            "field": "y",
            "type": "quantitative",
            "title": y + (" (log)" if log else ""),
            "scale": {"type": "log"} if log else {"zero": False},
            "axis": axis,
        },
        "detail": {"field": "seed"},
        **by_group("group", groups, colours, dashes=not points, legend=len(groups) > 1),
    }
    opacity = 1.0 if seeds == 1 else 0.55
    mark = {"type": "line", "strokeWidth": 2 if seeds == 1 else 1.4, "opacity": opacity, "aria": False}
    layers: list[Json] = [{"mark": mark}]
    pointed = tooltip({"group": "curve", "seed": "seed", "x": "step", "y": "value"})
    single = {getattr(curve, by) for curve in curves if not _drawn(curve)}
    if len(rows) <= 1500 or single:
        seen = (points and len(rows) <= 150) or bool(single)
        dot = {"type": "point", "filled": True, "size": 45, "opacity": opacity if seen else 0, "aria": False}
        layers.append({"mark": dot, "encoding": {"tooltip": pointed}})
    table = [["Curve", "Seed", "First", "Last", "Smallest", "Largest"]]
    form = (lambda value: f"{100 * value:.1f} %") if share else units.significant
    table += [[getattr(c, by), str(c.seed), *(form(v) for v in (c.y[0], c.y[-1], min(c.y), max(c.y)))] for c in curves]
    return Chart(title, summary, {"height": HEIGHT, "encoding": encoding, "layer": layers}, data, len(rows), table)


def by_group(field_name: str, domain: list[str], colours: Colours, *, dashes: bool, legend: bool) -> Json:
    """Colour together with dash or shape, so that no curve is told by colour alone."""
    second = ("strokeDash", DASHES) if dashes else ("shape", SHAPES)
    symbol = {"symbolType": "stroke", "symbolSize": 400} if dashes else {"symbolOpacity": 1}
    key = {"title": None, **symbol} if legend else None
    cycle = [second[1][i % len(second[1])] for i in range(len(domain))]
    return {
        "color": {
            "field": field_name,
            "type": "nominal",
            "scale": {"domain": domain, "range": colours.of(domain)},
            "legend": key,
        },
        second[0]: {
            "field": field_name,
            "type": "nominal",
            "scale": {"domain": domain, "range": cycle},
            "legend": key,
        },
    }


def tooltip(fields: Mapping[str, str]) -> list[Json]:
    kinds = {"x": "quantitative", "y": "quantitative", "n": "quantitative"}
    return [
        {"field": name, "title": title, "type": kinds.get(name, "nominal")}
        | ({"format": ",.4~g"} if name in kinds else {})
        for name, title in fields.items()
    ]


def _ends(curves: list[Curve], by: str = "name", metric: str = "") -> str:
    """First and last value of the first seed's curves, in words."""
    told: dict[str, str] = {}
    for curve in curves:
        first, last = (units.score(v, metric) if metric else units.significant(v) for v in (curve.y[0], curve.y[-1]))
        told.setdefault(getattr(curve, by), f"{getattr(curve, by)} from {first} to {last}")
    seeds = len({curve.seed for curve in curves})
    more = f" (first of {seeds} seeds)" if seeds > 1 else ""
    return "; ".join(list(told.values())[:8]) + more + "." if told else ""


def coded(values: Iterable[str]) -> Json:
    """Repeated text as levels and codes."""
    values = list(values)
    levels = list(dict.fromkeys(values))
    index = {level: code for code, level in enumerate(levels)}
    return {"levels": levels, "codes": [index[value] for value in values]}


def short(value: float) -> float | int:
    """The number with six significant digits, whole ones as integers."""
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
