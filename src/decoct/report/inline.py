"""A run as a notebook shows it: a table and a small picture, plain HTML and SVG without scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from decoct.report import units
from decoct.report.pareto import front
from decoct.report.records import Results, as_results
from decoct.report.sentence import sentences
from decoct.report.table import rows

WIDTH, HEIGHT, EDGE = 420, 220, 40
"""Pixels of a picture, and of the margin around what is drawn."""
COLOURS = ("#0b63b8", "#c2500a", "#0f7a6c", "#7a3fc4", "#8f6a00")
FINDINGS = 3
"""Sentences under a table."""
POINTS = 400
"""Points of a line that are drawn."""
Curves = Mapping[str, Sequence[tuple[float, float]]]


def run_html(results: Results | Mapping[str, Any], scores: Mapping[str, Mapping[str, float]] | None = None) -> str:
    """A run's models as a table, what it found in sentences, and quality against cost as a picture.

    `scores`, by model, is shown where the run measured no model.
    """
    records = as_results(results)
    if not records.models:
        return scores_html(scores or {})
    told = "".join(f"<li>{escape(each)}</li>" for each in sentences(records)[:FINDINGS])
    return f"<div>{grid(rows(records, brief=True))}<ul>{told}</ul>{_quality_picture(records)}</div>"


def scores_html(scores: Mapping[str, Mapping[str, float]], curves: Curves | None = None) -> str:
    """Scores on validation data as a table, one row a model, and `curves` by name as a picture."""
    named = dict.fromkeys(metric for each in scores.values() for metric in each)
    shown = [
        {"Model": name} | {units.label(metric): units.score(each.get(metric), metric) for metric in named}
        for name, each in scores.items()
    ]
    return f"<div>{grid(shown)}{lines(curves, 'loss by step') if curves else ''}</div>"


def grid(shown: Sequence[Mapping[str, str]]) -> str:
    """A table of rows that have the same headings.

    >>> grid([{"Model": "a & b"}])
    '<table><thead><tr><th>Model</th></tr></thead><tbody><tr><td>a &amp; b</td></tr></tbody></table>'
    """
    if not shown:
        return "<p>no model was scored</p>"
    head = "".join(f"<th>{escape(each)}</th>" for each in shown[0])
    body = "".join("<tr>" + "".join(f"<td>{escape(each)}</td>" for each in row.values()) + "</tr>" for row in shown)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _quality_picture(records: Results) -> str:
    """Quality against latency, or against file size where fewer than two models were timed."""
    metric = records.metric
    for cost, get, text in (
        ("latency", lambda model: model.p50, units.milliseconds),
        ("file size", lambda model: model.file_bytes, units.size),
    ):
        found = [(m.name, float(get(m)), m.quality[metric]) for m in records.models if get(m) and metric in m.quality]
        if len(found) > 1:
            less = units.less_is_better(metric, records.task.direction)
            return _points(found, f"{units.label(metric)} against {cost}", text, metric, less)
    return ""


def _points(found: Sequence[tuple[str, float, float]], title: str, text: Any, metric: str, less: bool) -> str:
    xs, ys = _scale([x for _, x, _ in found], EDGE, WIDTH - EDGE), _scale([y for *_, y in found], HEIGHT - EDGE, EDGE)
    best = front([(x, -y if less else y) for _, x, y in found])
    drawn = [
        f'<line x1="{xs[a]:.1f}" y1="{ys[a]:.1f}" x2="{xs[b]:.1f}" y2="{ys[b]:.1f}" stroke="#888" '
        'stroke-dasharray="4"/>'
        for a, b in pairwise(best)
    ]
    for i, (name, x, y) in enumerate(found):
        told = escape(f"{name}: {units.score(y, metric)}, {text(x)}")
        anchor = "end" if xs[i] > WIDTH / 2 else "start"
        drawn.append(
            f'<circle cx="{xs[i]:.1f}" cy="{ys[i]:.1f}" r="5" fill="{_colour(i)}"><title>{told}</title></circle>'
        )
        drawn.append(_text(xs[i] + (-9 if anchor == "end" else 9), ys[i] - 8, name, anchor, _colour(i)))
    return _svg(title, drawn)


def lines(curves: Curves, title: str) -> str:
    """Curves by name, each a sequence of (x, y), on common axes; those without a point are left out.

    >>> lines({"loss": [(1, 2.0), (2, 1.0)]}, "by step").count("<polyline")
    1
    """
    kept = {name: _thin(points) for name, points in curves.items() if points}
    every = [point for points in kept.values() for point in points]
    if not every:
        return ""
    xs, ys = _scale([x for x, _ in every], EDGE, WIDTH - EDGE), _scale([y for _, y in every], HEIGHT - EDGE, EDGE)
    drawn, at = [], 0
    for i, (name, points) in enumerate(kept.items()):
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs[at : at + len(points)], ys[at : at + len(points)]))
        drawn.append(f'<polyline points="{places}" fill="none" stroke="{_colour(i)}" stroke-width="1.5"/>')
        drawn.append(_text(WIDTH - EDGE, EDGE + 14 * i, name, "end", _colour(i)))
        at += len(points)
    low, high = min(y for _, y in every), max(y for _, y in every)
    drawn.append(_text(4, HEIGHT - EDGE + 4, units.significant(low), "start", "#666"))
    drawn.append(_text(4, EDGE + 4, units.significant(high), "start", "#666"))
    return _svg(title, drawn)


def _thin(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    step = -(-len(points) // POINTS)
    return points[::step]


def _scale(values: Sequence[float], low: float, high: float) -> list[float]:
    """Values as pixels between `low` and `high`; all in the middle where they are equal."""
    least, most = min(values), max(values)
    if most == least:
        return [(low + high) / 2] * len(values)
    return [low + (high - low) * (value - least) / (most - least) for value in values]


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _text(x: float, y: float, text: str, anchor: str, colour: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="11" fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, drawn: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{escape(title)}" font-family="sans-serif">{_text(EDGE, 16, title, "start", "#666")}'
        f"{''.join(drawn)}</svg>"
    )
