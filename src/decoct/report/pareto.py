"""Quality against cost, with the models that no other beats in both."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from decoct.report import units
from decoct.report.charts import SHAPES, Chart, Json, coded, short, tooltip
from decoct.report.colours import Colours
from decoct.report.records import ModelRecord, Results
from decoct.report.runs import Run

WIDE = 8.0
"""Costs whose largest is this many times the smallest are drawn on a logarithmic axis."""
HEIGHT, WIDTH, CHARACTER = 300, 360, 6.6
"""Pixels: the height drawn, the width and the size of letters assumed where labels are placed."""


Point = tuple[str, ModelRecord, float, float]
"""The run's name, the model, its cost, its quality."""


def pareto(runs: Sequence[Run], cost: str, colours: Colours) -> list[Chart]:
    """Quality against a cost ("latency" or "size"), with the models that no other beats in both.

    Of latency one chart for each way of measuring (runtime, threads, batch, machine) in which two models were timed:
    times of different ways are not compared. Runs on other data, or with another metric, than the first are left out.
    """
    results = runs[0].results
    metric = results.metric
    ways: dict[tuple[Any, ...], list[Point]] = {}
    for run in runs:
        for model in run.results.models if _graded_alike(run.results, results) else ():
            x = _cost(model, cost)
            if x and metric in model.quality and model.graded_like(results.models[0]):
                point = (run.name, model, x, model.quality[metric])
                ways.setdefault(_way(run.results, model) if cost == "latency" else (), []).append(point)
    shown = {way: points for way, points in ways.items() if len(points) > 1}
    left = [point for way, points in ways.items() if way not in shown for point in points]
    return [_chart(runs, cost, colours, way, points, left, len(shown) > 1) for way, points in shown.items()]


def _graded_alike(results: Results, first: Results) -> bool:
    """Whether qualities of two runs stand for the same: one metric on the same data."""
    prints = {str(each.data.get("fingerprint", "")) for each in (results, first)} - {""}
    return results.metric == first.metric and len(prints) < 2


def _way(results: Results, model: ModelRecord) -> tuple[Any, ...]:
    """How and where a latency was measured."""
    latency = model.latency
    assert latency is not None
    machine = json.dumps({k: v for k, v in results.machine.items() if k != "versions"}, sort_keys=True, default=str)
    return latency.runtime, latency.threads, latency.batch, machine


def _told_way(way: tuple[Any, ...]) -> str:
    runtime, threads, batch, _ = way
    parts = [runtime, f"{threads} {'thread' if threads == 1 else 'threads'}" if threads else ""]
    return ", ".join(part for part in [*parts, f"batch of {batch}" if batch else ""] if part)


def _chart(
    runs: Sequence[Run],
    cost: str,
    colours: Colours,
    way: tuple[Any, ...],
    points: list[Point],
    left: list[Point],
    several_ways: bool,
) -> Chart:
    results, several = runs[0].results, len(runs) > 1
    metric, less = results.metric, units.less_is_better(results.metric, results.task.direction)
    best = front([(x, -y if less else y) for _, _, x, y in points])
    label, title = units.label(metric), {"latency": "latency", "size": "file size"}[cost]
    names = [_point_name(run, model, len(runs)) for run, model, _, _ in points]
    shown = units.milliseconds if cost == "latency" else units.size
    xs, ys = [x for _, _, x, _ in points], [y for *_, y in points]
    deviations = [model.quality_sd.get(metric, 0.0) for _, model, _, _ in points]
    scale = _scale(xs, ys, deviations, units.is_share(metric))
    places = _labels(xs, ys, deviations, names, scale)
    data: Json = {
        "name": names,
        "run": coded([run for run, *_ in points]),
        "model": coded([model.name for _, model, _, _ in points]),
        "x": [short(x) for x in xs],
        "y": [short(y) for y in ys],
        "low": [short(y - sd) for y, sd in zip(ys, deviations)],
        "high": [short(y + sd) for y, sd in zip(ys, deviations)],
        "front": [int(i in best) for i in range(len(points))],
        "cost": [shown(x) for x in xs],
        "quality": [units.score(y, metric) for y in ys],
        "dy": [place[1] for place in places],
        "left": [place[0] for place in places],
    }
    axis = "median latency (ms)" if cost == "latency" else "file size (bytes)"
    better = f"{label} ({'smaller' if less else 'larger'} is better)"
    spec = _pareto_spec(scale, axis, better, metric, data, colours, several)
    table = [
        ["Model", title.capitalize(), label],
        *([n, c, q] for n, c, q in zip(names, data["cost"], data["quality"])),
    ]
    heading = f"{label} against {title}" + (f" ({_told_way(way)})" if way and (several_ways or left) else "")
    left_names = [_point_name(run, model, len(runs)) for run, model, _, _ in left]
    summary = _summary(names, best, left_names if way else [])
    return Chart(heading, summary, spec, data, len(points), table, any(deviations))


def _summary(names: list[str], best: list[int], left: list[str]) -> str:
    behind = [name for i, name in enumerate(names) if i not in best]
    told = f"On the front, by these figures beaten by no other in both: {', '.join(names[i] for i in best)}."
    told += f" Beaten by at least one of them: {', '.join(behind)}." if behind else ""
    return told + (f" Not drawn, measured in another way: {', '.join(left)}." if left else "")


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other one beats: cost smaller and worth larger, one of them strictly; by cost.

    >>> front([(1.0, 0.9), (2.0, 0.8), (3.0, 0.95)])
    [0, 2]
    """

    def beaten(i: int) -> bool:
        x, y = points[i]
        return any(a <= x and b >= y and (a < x or b > y) for a, b in points)

    return sorted((i for i in range(len(points)) if not beaten(i)), key=lambda i: points[i])


def _pareto_spec(
    scale: Json, x: str, y: str, metric: str, data: Mapping[str, Any], colours: Colours, several: bool
) -> Json:
    """Colour is the model; shape is the model too, or the run where there are several."""
    models, by = data["model"]["levels"], "run" if several else "model"
    shapes = data[by]["levels"]
    axis = {"format": "~%"} if units.is_share(metric) else {"format": "~g"}
    color = {"field": "model", "type": "nominal", "scale": {"domain": models, "range": colours.of(models)}}
    shape_range = [SHAPES[i % len(SHAPES)] for i in range(len(shapes))]
    shape = {"field": by, "type": "nominal", "scale": {"domain": shapes, "range": shape_range}}
    position = {
        "x": {"field": "x", "type": "quantitative", "title": x, "scale": scale["x"],
              "axis": {"format": "~s" if "bytes" in x else "~g", "tickCount": 6}},
        "y": {"field": "y", "type": "quantitative", "title": y, "scale": scale["y"], "axis": axis},
    }  # fmt: skip
    key = {"title": None} if several else None
    keys = {"name": "model", "cost": x.split(" (")[0], "quality": units.label(metric)}
    label: Json = {"type": "text", "fontSize": 12, "aria": False, "dy": {"expr": "datum.dy"}}
    sides: tuple[Json, Json] = ({"align": "left", "dx": 10}, {"align": "right", "dx": -10})
    texts: list[Json] = [
        {
            "transform": [{"filter": f"datum.left === {left}"}],
            "mark": {**label, **side},
            "encoding": {"text": {"field": "name"}},
        }
        for left, side in enumerate(sides)
        if not several
    ]
    return {
        "height": HEIGHT,
        "encoding": position,
        "layer": [
            {"transform": [{"filter": "datum.front === 1"}],
             "mark": {"type": "line", "interpolate": "step-after", "strokeDash": [4, 4], "strokeWidth": 1.5,
                      "style": "quiet", "aria": False}},
            {"transform": [{"filter": "datum.high > datum.low"}], "mark": {"type": "rule", "aria": False},
             "encoding": {"y": {"field": "low", "type": "quantitative", "scale": scale["y"], "title": y},
                          "y2": {"field": "high"}, "color": {**color, "legend": key}}},
            {"mark": {"type": "point", "filled": True, "size": 130, "opacity": 1},
             "encoding": {"color": {**color, "legend": key},
                          "shape": {**shape, "legend": key},
                          "tooltip": tooltip(keys)}},
            *texts,
        ],
    }  # fmt: skip


def _scale(xs: list[float], ys: list[float], deviations: list[float], share: bool) -> Json:
    """Domains with room around the points, logarithmic where the costs are far apart."""
    low, high = min(xs), max(xs)
    log = high / low > WIDE
    if log:
        domain = [low / 1.6, high * 1.6]
    else:
        pad = 0.18 * (high - low) or 0.1 * high
        domain = [max(low - pad, 0.0), high + pad]
    bottom, top = min(y - sd for y, sd in zip(ys, deviations)), max(y + sd for y, sd in zip(ys, deviations))
    pad = 0.2 * (top - bottom) or 0.05 * abs(top) or 1.0
    bottom, top = bottom - pad, top + pad
    if share:
        bottom, top = max(bottom, 0.0), min(top, 1.0 if pad > 0.02 else 1.0 + pad / 2)
    ends = [short(value) for value in domain]
    return {
        "x": {"type": "log", "domain": ends} if log else {"type": "linear", "domain": ends, "nice": False},
        "y": {"domain": [short(bottom), short(top)], "nice": False},
    }


def _labels(
    xs: list[float], ys: list[float], deviations: list[float], names: list[str], scale: Json
) -> list[tuple[int, int]]:
    """For each point: whether its label stands left of it, and how many pixels it is moved down.

    A free place is taken, the nearest to a little above the point.
    """
    (left, right), (bottom, top) = scale["x"]["domain"], scale["y"]["domain"]
    warp = math.log if scale["x"]["type"] == "log" else float
    across = [WIDTH * (warp(x) - warp(left)) / (warp(right) - warp(left)) for x in xs]
    down = [HEIGHT * (top - y) / (top - bottom) for y in ys]
    reach = [max(HEIGHT * sd / (top - bottom), 7.0) for sd in deviations]
    taken = [(x - 6, x + 6, y - r, y + r) for x, y, r in zip(across, down, reach)]
    found = []
    for i, name in enumerate(names):
        width = CHARACTER * len(name) + 10
        choices = []
        for shift in (-12, 0, 14, -26, 28, -40, 42):
            for on_left in (0, 1):
                start = across[i] - width if on_left else across[i] + 7
                middle = down[i] + shift
                box = (start, start + width - 7, middle - 7, middle + 7)
                outside = max(0.0, -start) + max(0.0, box[1] - WIDTH)
                hits = sum(_overlap(box, other) for k, other in enumerate(taken) if k != i)
                choices.append((hits * 40 + outside * 3 + abs(shift + 12), on_left, shift, box))
        _, on_left, shift, box = min(choices)
        taken.append(box)
        found.append((on_left, shift))
    return found


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]


def _cost(model: ModelRecord, cost: str) -> float | None:
    return model.p50 if cost == "latency" else model.file_bytes or None


def _point_name(run: str, model: ModelRecord, runs: int) -> str:
    return f"{run}: {model.name}" if runs > 1 else model.name
