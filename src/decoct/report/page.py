"""The page of one run, or of several compared: one HTML file that needs nothing else and asks the network nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from decoct.errors import DataError
from decoct.report import charts, units
from decoct.report.chain import teacher_of
from decoct.report.charts import Chart
from decoct.report.close import Examples
from decoct.report.colours import Colours
from decoct.report.comparing import differences, gains
from decoct.report.compression import Stage, stages
from decoct.report.confusion import ClassChange, changes, mistakes, squares
from decoct.report.curves import Log, read_log
from decoct.report.gallery import Card, cards, precision_recall
from decoct.report.highlights import Highlight, highlights
from decoct.report.limits import LimitsView, limits_view
from decoct.report.measured import StepView, facts, step_views
from decoct.report.pareto import pareto
from decoct.report.records import ModelRecord, Results
from decoct.report.run_manifest import RUN_MANIFEST, write_page_file
from decoct.report.runs import Run, read_runs
from decoct.report.sentence import Finding, findings, shipped_of, subject_of
from decoct.report.table import Column, Row, filled, table
from decoct.report.vega import vega

ALL_POINTS = 24_000
"""Most points of all curves of a page together."""
SMALL_MATRIX, LARGE_MATRIX = 20, 60
"""Classes up to which a confusion matrix is a table, or a picture; above, only its commonest mistakes are listed."""
SHOWN_CLASSES = 30
RECIPE_CHARACTERS = 60_000
UNVOUCHED = Finding(
    f"These figures are not vouched for: the run has no {RUN_MANIFEST}, so nothing tells whether they were changed.",
    "warning",
)


@dataclass
class Pictures:
    """The charts of a page in order; each gets the id of the element it is drawn into."""

    charts: list[Chart] = field(default_factory=list)

    def add(self, chart: Chart | None) -> Placed | None:
        """Takes a chart in; None stays None."""
        if chart is None:
            return None
        self.charts.append(chart)
        return Placed(f"chart-{len(self.charts)}", chart)

    def json(self) -> str:
        """The charts as JSON that cannot end its script element."""
        content = [
            {"id": f"chart-{i}", "title": chart.title, "spec": chart.spec, "data": chart.data, "rows": chart.rows}
            for i, chart in enumerate(self.charts, start=1)
        ]
        return embedded_json(content)


@dataclass(frozen=True)
class Placed:
    """A chart and the id of the element it is drawn into."""

    id: str
    chart: Chart


@dataclass(frozen=True)
class Matrix:
    """The confusion matrix of one model as a table, as a picture, or as its commonest mistakes."""

    model: str
    labels: list[str]
    rows: list[Any]
    picture: Placed | None
    mistakes: list[tuple[str, str, int]]


@dataclass(frozen=True)
class StageView:
    """A stage of the compression chain and its placed picture, where it has one."""

    stage: Stage
    picture: Placed | None


@dataclass(frozen=True)
class RunView:
    """What the template shows of one run."""

    name: str
    anchor: int
    results: Results
    state: str
    """"failed", where the run failed or did not end."""
    findings: list[Finding]
    highlights: list[Highlight]
    rows: list[Row]
    stages: list[StageView]
    limits: LimitsView | None
    training: list[Placed | None]
    validation: Placed | None
    once: list[str]
    """What was logged once and has no picture."""
    first_seed: int | None
    matrices: list[Matrix]
    changes: list[ClassChange]
    hidden_classes: int
    smallest: int
    """Samples of the smallest class that has any; 0 where no classes are compared."""
    changed: tuple[str, str]
    areas: bool
    """Whether any class has an average precision."""
    precision: Placed | None
    examples: Examples
    cards: list[Card]
    widest: float
    facts: list[tuple[str, str]]
    steps: list[StepView]
    recipe: str
    lost: int


def write_page(folders: Sequence[Path], out: Path) -> Path:
    """Writes the page of the runs in `folders` to `out`, whole or not at all, and returns its path.

    DataError if a folder is no finished run, IntegrityError if its records are damaged.
    """
    if not folders:
        raise DataError("no run to report on; name at least one run's folder")
    runs = read_runs([Path(folder) for folder in folders])
    write_page_file(Path(out), page(runs))
    return Path(out)


def page(runs: Sequence[Run]) -> str:
    """The page as text."""
    logs = [Log() if run.results.unfinished else read_log(run.folder) for run in runs]
    pictures = Pictures()
    limit = _limit(logs)
    columns = filled([run.results for run in runs])
    colours = Colours.over([run.results for run in runs], logs)
    fronts = [pictures.add(chart) for cost in ("latency", "size") for chart in pareto(runs, cost, colours)]
    views = [_view(i, run, log, columns, pictures, colours, limit) for i, (run, log) in enumerate(zip(runs, logs))]
    several = len(runs) > 1
    unlike, more = differences(runs) if several else ([], 0)
    joint = charts.validation(joined(runs, logs), runs[0].results.metric, colours, limit) if several else None
    return _render(
        "page.html.jinja",
        views=views,
        gains=gains(runs) if several else [],
        unlike=unlike,
        more_unlike=more,
        joint=pictures.add(joint),
        columns=columns,
        fronts=fronts,
        pictures=pictures,
        title=_title(runs),
        units=units,
    )


def joined(runs: Sequence[Run], logs: Sequence[Log]) -> Log:
    """The validation curves of all runs, each step under its run's name."""
    curves = [
        replace(curve, step=f"{run.name}: {curve.step}") for run, log in zip(runs, logs) for curve in log.validation
    ]
    return Log(validation=curves)


def embedded_json(content: Any) -> str:
    """JSON for a script element: no character of it can end the element or start a comment."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def unbroken(text: str) -> str:
    """The text with no line break between a number and its unit.

    >>> unbroken("98.1 % of 360 samples in 3 ms")
    '98.1\\xa0% of 360 samples in 3\\xa0ms'
    """
    return re.sub(r"(?<=\d) (?=(?:%|B|kB|MB|GB|TB|µs|ms|s|k|M|G|T|min|h)(?!\w))", "\N{NO-BREAK SPACE}", text)


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("decoct.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = unbroken
    scripts = [vega(), _file("page.js")]
    policy = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    return environment.get_template(template).render(values, style=_file("page.css"), scripts=scripts, policy=policy)


def _file(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _limit(logs: Sequence[Log]) -> int:
    curves = sum(len(log.losses) + len(log.weights) + len(log.rates) + len(log.validation) for log in logs)
    return max(2, min(charts.POINTS, ALL_POINTS // max(curves, 1)))


def _title(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs compared"
    results = runs[0].results
    use, data = results.task.use.replace("_", " "), str(results.data.get("use", ""))
    return " on ".join(part for part in (use.capitalize(), data.replace("_", " ")) if part) or runs[0].name


def _view(
    anchor: int,
    run: Run,
    log: Log,
    columns: Sequence[Column],
    pictures: Pictures,
    colours: Colours,
    limit: int,
) -> RunView:
    results = run.results
    student = subject_of(results)
    teacher = teacher_of(results, student)
    chain = {model.name: model for model in (teacher, student, shipped_of(results)) if model}
    compared = [model for model in chain.values() if model.confusion and model.confusion.usable()]
    changed = changes(teacher, student) if teacher and student and teacher is not student else []
    ordered = sorted(changed, key=lambda each: -abs(each.points)) if len(changed) > SHOWN_CLASSES else changed
    return RunView(
        name=run.name,
        anchor=anchor,
        results=results,
        state="failed" if results.failed or results.unfinished else "",
        findings=[*findings(results), *([] if run.vouched else [UNVOUCHED])],
        highlights=highlights(results),
        rows=table(results, [column.title for column in columns]),
        stages=[StageView(each, pictures.add(each.chart)) for each in stages(results)],
        limits=limits_view(results),
        training=[pictures.add(chart) for chart in charts.training(log, colours, limit)],
        validation=pictures.add(charts.validation(log, results.metric, colours, limit)),
        once=charts.logged_once(log, results.metric),
        first_seed=results.seeds[0] if results.seeds else results.seed,
        matrices=[_matrix(model, pictures) for model in compared],
        changes=ordered[:SHOWN_CLASSES],
        hidden_classes=max(len(changed) - SHOWN_CLASSES, 0),
        smallest=min((each.n for each in changed if each.n), default=0),
        changed=(teacher.name if teacher else "", student.name if student else ""),
        areas=any(each.average_precision is not None for each in changed),
        precision=pictures.add(precision_recall(student, colours)) if student else None,
        examples=results.examples,
        cards=cards(results.examples),
        widest=max([abs(each.points) for each in changed], default=0.0) or 1.0,
        facts=facts(results),
        steps=step_views(results.steps),
        recipe=_shortened(run.recipe),
        lost=log.lost,
    )


def _matrix(model: ModelRecord, pictures: Pictures) -> Matrix:
    assert model.confusion is not None
    labels = [str(label) for label in model.confusion.labels]
    picture, rows = None, []
    if len(labels) <= SMALL_MATRIX:
        rows = squares(model.confusion)
    elif len(labels) <= LARGE_MATRIX:
        picture = pictures.add(charts.heat(f"Answers of {model.name}", labels, model.confusion.matrix))
    return Matrix(model.name, labels, rows, picture, mistakes(model.confusion))


def _shortened(recipe: str) -> str:
    if len(recipe) <= RECIPE_CHARACTERS:
        return recipe
    return recipe[:RECIPE_CHARACTERS] + f"\n# {len(recipe) - RECIPE_CHARACTERS} more characters: see recipe.yaml"
