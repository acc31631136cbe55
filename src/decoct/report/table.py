"""The table of a run: one row a model, one column a measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from decoct.report import units
from decoct.report.chain import is_teacher, teacher_of
from decoct.report.records import ModelRecord, Results, as_results
from decoct.report.sentence import gain, speedup

MODEL = "Model"
EXTRA_METRICS = 3
Get = Callable[[ModelRecord], float | None]


@dataclass(frozen=True)
class Cell:
    """What stands in a cell, and below it, smaller, how it compares with the teacher."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Column:
    """A measurement: its heading, what it means, how a model fills it; `main` ones fit a screen."""

    title: str
    meaning: str
    cell: Callable[[ModelRecord], Cell]
    main: bool = True


@dataclass(frozen=True)
class Row:
    """A model and its cells, in the order of the columns."""

    name: str
    cells: tuple[Cell, ...]


def rows(results: Results | Mapping[str, Any], *, brief: bool = False) -> list[dict[str, str]]:
    """One mapping a model, heading to text; columns that no model fills are left out.

    `brief` keeps what fits a terminal.

    >>> rows({"models": [{"name": "teacher", "quality": {"accuracy": 0.985}, "parameters": 12010}]})
    [{'Model': 'teacher', 'Accuracy': '98.5 %', 'Parameters': '12.0 k'}]
    """
    records = as_results(results)
    shown = [column for column in filled([records]) if column.main or not brief]
    return [
        {MODEL: model.name} | {column.title: column.cell(model).text for column in shown} for model in records.models
    ]


def table(results: Results, titles: Sequence[str]) -> list[Row]:
    """The rows of one run for the columns of these titles, which may come from several runs."""
    known = {column.title: column for column in columns(results)}
    absent = Cell(units.ABSENT)
    return [
        Row(model.name, tuple(known[title].cell(model) if title in known else absent for title in titles))
        for model in results.models
    ]


def filled(runs: Sequence[Results]) -> list[Column]:
    """The columns that at least one model of the runs fills, in reading order."""
    found: dict[str, Column] = {}
    for results in runs:
        for column in columns(results):
            if any(column.cell(model).text != units.ABSENT for model in results.models):
                found.setdefault(column.title, column)
    return list(found.values())


def columns(results: Results) -> list[Column]:
    """All columns that a run could fill."""
    teacher = teacher_of(results)
    return [
        *_quality_columns(results, teacher),
        *_fidelity_columns(results),
        *_cost_columns(teacher),
        *_check_columns(),
    ]


def _quality_columns(results: Results, teacher: ModelRecord | None) -> list[Column]:
    main = results.metric
    others = [name for name in dict.fromkeys(n for model in results.models for n in model.quality) if name != main]

    def cell(metric: str) -> Callable[[ModelRecord], Cell]:
        return lambda model: _quality(results, model, teacher, metric)

    found = [] if not main else [Column(units.label(main), _meaning(main, results), cell(main))]
    return found + [
        Column(units.label(name), _meaning(name, results), cell(name), main=False) for name in others[:EXTRA_METRICS]
    ]


def _meaning(metric: str, results: Results) -> str:
    direction = results.task.direction if metric == results.metric else ""
    better = "smaller is better" if units.less_is_better(metric, direction) else "larger is better"
    return f"{units.label(metric)}, {better}"


def _quality(results: Results, model: ModelRecord, teacher: ModelRecord | None, metric: str) -> Cell:
    value, deviation = model.quality.get(metric), model.quality_sd.get(metric)
    if value is None:
        return Cell(units.ABSENT)
    text = units.score(value, metric)
    if deviation is not None:
        amount = units.spread(deviation, metric)
        text = f"{text.removesuffix(' %')} ± {amount} %" if text.endswith(" %") else f"{text} ± {amount}"
    reference = teacher.quality.get(metric) if teacher and model.graded_like(teacher) else None
    if reference is None or model is teacher or metric != results.metric:
        return Cell(text)
    difference = gain(results, value, reference)
    amount = units.spread(abs(difference), metric)
    if not amount.strip("0."):
        return Cell(text, "same")
    points = " points" if units.is_share(metric) else ""
    return Cell(text, f"{amount}{points} {'better' if difference > 0 else 'worse'}")


def _fidelity_columns(results: Results) -> list[Column]:
    known = dict.fromkeys(name for model in results.models for name in model.fidelity)

    def cell(metric: str) -> Callable[[ModelRecord], Cell]:
        def fill(model: ModelRecord) -> Cell:
            return Cell(units.ABSENT if is_teacher(model) else units.score(model.fidelity.get(metric), metric))

        return fill

    meanings = {
        "agreement": f"Share of {results.task.item}s on which the model gives the teacher's answer",
        "kl": "Divergence of the model's probabilities from the teacher's, 0 is equal",
    }
    columns = []
    for name in known:
        title = "Agreement" if name == "agreement" else f"{units.label(name)} to teacher"
        columns.append(Column(title, meanings.get(name, title), cell(name), main=name == "agreement"))
    calibration = Column("ECE", "Expected calibration error, smaller is better", _ece, main=False)
    return [*columns, calibration]


def _ece(model: ModelRecord) -> Cell:
    return Cell(units.score(model.calibration.get("ece"), "ece"))


def _cost_columns(teacher: ModelRecord | None) -> list[Column]:
    def amount(
        get: Get, form: Callable[[float | None], str], less: str, more: str, *, timed: bool = False
    ) -> Callable[[ModelRecord], Cell]:
        def fill(model: ModelRecord) -> Cell:
            mine, theirs = get(model), get(teacher) if teacher else None
            compared = bool(mine and theirs) and model is not teacher
            compared = compared and (not timed or (teacher is not None and model.measured_like(teacher)))
            return Cell(form(mine), ratio((theirs or 0) / (mine or 1), less, more) if compared else "")

        return fill

    return [
        Column(
            "Parameters", "Numbers the model has learnt", amount(lambda m: m.parameters, units.count, "fewer", "more")
        ),
        Column("MACs", "Multiplications for one sample", amount(lambda m: m.macs, units.count, "fewer", "more")),
        Column("File", "Size of the file that ships", amount(lambda m: m.file_bytes, units.size, "smaller", "larger")),
        Column(
            "Memory",
            "Peak memory while it answers",
            amount(lambda m: m.peak_memory_bytes, units.size, "less", "more", timed=True),
            main=False,
        ),
        Column("p50", "Median time of an answer", lambda model: _latency(model, teacher)),
        Column("Against float", "A file in integers against its float file where it was written", _against_float),
        Column("p99", "Time within which 99 of 100 answers come", _p99),
        Column("Throughput", "Samples a second", _throughput, main=False),
    ]


def ratio(value: float, less: str, more: str) -> str:
    """How a cost compares with the teacher's, `value` times smaller.

    >>> ratio(12.0, "smaller", "larger"), ratio(0.5, "smaller", "larger"), ratio(1.0, "smaller", "larger")
    ('12× smaller', '2.0× larger', 'same')
    """
    if max(value, 1 / value) < 1.02:
        return "same"
    return f"{units.times(value)}× {less}" if value > 1 else f"{units.times(1 / value)}× {more}"


def _latency(model: ModelRecord, teacher: ModelRecord | None) -> Cell:
    if model.latency is None or model.latency.p50_ms is None:
        return Cell(units.ABSENT)
    text = units.milliseconds(model.latency.p50_ms) + (" (noisy)" if model.latency.noisy else "")
    faster = speedup(model, teacher) if teacher and model is not teacher else None
    return Cell(text, ratio(faster, "faster", "slower") if faster else "")


def _against_float(model: ModelRecord) -> Cell:
    if not model.speed.ratio:
        return Cell(units.ABSENT)
    larger = [each.removesuffix(" ×") for each in model.speed.words if each.startswith("larger")]
    note = f"{larger[0].removeprefix('larger than float: ')}× larger" if larger else ""
    return Cell(ratio(1 / model.speed.ratio, "faster", "slower"), note)


def _p99(model: ModelRecord) -> Cell:
    return Cell(units.milliseconds(model.latency.p99_ms if model.latency else None))


def _throughput(model: ModelRecord) -> Cell:
    value = model.latency.throughput_per_s if model.latency else None
    return Cell(units.ABSENT if value is None else f"{units.count(value)}/s")


def _check_columns() -> list[Column]:
    return [
        Column("Runtime", "What ran the file", _runtime),
        Column(
            "Verified",
            "Largest difference between the file's outputs and the model's on the samples checked",
            _verified,
        ),
    ]


def _runtime(model: ModelRecord) -> Cell:
    return Cell((model.latency.runtime if model.latency else "") or units.ABSENT)


def _verified(model: ModelRecord) -> Cell:
    difference, agreement = model.verified.get("max_abs_diff"), model.verified.get("agreement")
    if difference is None and agreement is None:
        return Cell(units.ABSENT)
    text = "yes" if difference is None else f"≤ {difference:.1e}" if difference else "exact"
    equal = agreement is None or agreement >= 0.9995
    return Cell(text, "" if equal else f"{units.score(agreement, 'agreement')} equal")
