"""Quality against cost, with the models that no other beats in both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from decoct.report import units
from decoct.report.charts import SHAPES, Chart, Json, coded, short, tooltip
from decoct.report.records import ModelRecord, Run

WIDE = 8.0
"""Costs whose largest is this many times the smallest are drawn on a logarithmic axis."""
HEIGHT, WIDTH, CHARACTER = 300, 360, 6.6
"""Pixels: the height drawn, the width and the size of letters assumed where labels are placed."""


def pareto(runs: Sequence[Run], cost: str) -> Chart | None:
    """Quality against a cost ("latency" or "size"), with the models that no other beats in both."""
    results = runs[0].results
    metric, less = results.metric, units.less_is_better(results.metric, results.task.direction)
    points = [
        (run.name, model, x, model.quality[metric])
        for run in runs
        if run.results.metric == metric
        for model in run.results.models
        if (x := _cost(model, cost)) and metric in model.quality
    ]
    if len(points) < 2:
        return None
    best = front([(x, -y if less else y) for _, _, x, y in points])
    label, title = units.label(metric), {"latency": "latency", "size": "file size"}[cost]
    names = [_point_name(run, model, len(runs)) for run, model, _, _ in points]
    shown = units.milliseconds if cost == "latency" else units.size
    verdict = ", ".join(names[i] for i in best)
    behind = ", ".join(name for i, name in enumerate(names) if i not in best)
    summary = f"On the front, beaten by no other in both: {verdict}."
    summary += f" Beaten by at least one of them: {behind}." if behind else ""
    xs, ys = [x for _, _, x, _ in points], [y for *_, y in points]
    deviations = [model.quality_sd.get(metric, 0.0) for _, model, _, _ in points]
    scale = _scale(xs, ys, deviations, units.is_share(metric))
    places = _labels(xs, ys, deviations, names, scale)
    data: Json = {
        "name": names,
        "group": coded([run for run, *_ in points] if len(runs) > 1 else [m.name for _, m, _, _ in points]),
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
    spec = _pareto_spec(
        scale, axis, f"{label} ({'smaller' if less else 'larger'} is better)", metric, data, len(runs) > 1
    )
    table = [
        ["Model", title.capitalize(), label],
        *([n, c, q] for n, c, q in zip(names, data["cost"], data["quality"])),
    ]
    return Chart(f"{label} against {title}", summary, spec, data, len(points), table, any(deviations))


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other one beats: cost smaller and worth larger, one of them strictly; by cost.

    >>> front([(1.0, 0.9), (2.0, 0.8), (3.0, 0.95)])
    [0, 2]
    """

    def beaten(i: int) -> bool:
        x, y = points[i]
        return any(a <= x and b >= y and (a < x or b > y) for a, b in points)

    return sorted((i for i in range(len(points)) if not beaten(i)), key=lambda i: points[i])


def _pareto_spec(scale: Json, x: str, y: str, metric: str, data: Mapping[str, Any], several: bool) -> Json:
    groups, models = data["group"]["levels"], data["model"]["levels"]
    axis = {"format": "~%"} if units.is_share(metric) else {"format": "~g"}
    color = {"field": "group", "type": "nominal", "scale": {"domain": groups}}
    shape_range = [SHAPES[i % len(SHAPES)] for i in range(len(models))]
    shape = {"field": "model", "type": "nominal", "scale": {"domain": models, "range": shape_range}}
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
