"""A gallery of samples on which the teacher and the student differ, and what each model is worth on each class."""

from __future__ import annotations

from dataclasses import dataclass

from decoct.report import units
from decoct.report.charts import HEIGHT, Chart, Json, by_group, coded, short, tooltip
from decoct.report.close import ClassFigures, Examples, Said
from decoct.report.colours import Colours
from decoct.report.records import ModelRecord

LINES = 12
"""Most classes of one picture: the worst by average precision."""
PICTURE = "data:image/png;base64,"


@dataclass(frozen=True)
class Card:
    """One sample as it is shown: what it is, and what both models said of it."""

    title: str
    image: str
    text: str
    row: list[tuple[str, str]]
    model: str
    reference: str
    right: str
    """Who was right: "model", "reference" or neither; empty where the true answer is not known."""


def cards(examples: Examples) -> list[Card]:
    """The samples in their order; pictures that are no PNG in the page itself are left out."""
    found = []
    for each in examples.items:
        true = each.true if isinstance(each.true, str) else ""
        numbers = _numbers(each.true) if isinstance(each.true, list) else ""
        right = ""
        if true:
            right = {each.model.class_: "model", each.reference.class_: "reference"}.get(true, "neither")
        found.append(
            Card(
                title=true or numbers or "not labelled",
                image=each.shown.image if each.shown.image.startswith(PICTURE) else "",
                text=each.shown.text,
                row=[(name, _field(value)) for name, value in each.shown.row.items()],
                model=_said(each.model),
                reference=_said(each.reference),
                right=right,
            )
        )
    return found


def precision_recall(model: ModelRecord, colours: Colours) -> Chart | None:
    """Precision over recall of one model, one line a class; None where no class has a curve."""
    known = [each for each in model.classes if each.curve.recall and each.average_precision is not None]
    known.sort(key=lambda each: each.average_precision or 0.0)
    drawn = known[:LINES]
    rows = [
        (str(each.label), x, y)
        for each in drawn
        for x, y in zip(each.curve.recall, each.curve.precision)
        if x is not None and y is not None
    ]
    if not rows:
        return None
    groups = [str(each.label) for each in drawn]
    share = {"type": "quantitative", "scale": {"domain": [0, 1]}, "axis": {"format": "~%"}}
    encoding: Json = {
        "x": {"field": "x", "title": "recall", **share},
        "y": {"field": "y", "title": "precision", **share},
        "order": {"field": "n", "type": "quantitative"},
        **by_group("group", groups, colours, dashes=True, legend=len(groups) > 1),
    }
    mark = {"type": "line", "interpolate": "step-before", "strokeWidth": 2, "aria": False}
    dot = {"type": "point", "filled": True, "size": 45, "opacity": 0, "aria": False}
    pointed = tooltip({"group": "class", "x": "recall", "y": "precision"})
    layers = [{"mark": mark}, {"mark": dot, "encoding": {"tooltip": pointed}}]
    data = {
        "group": coded([row[0] for row in rows]),
        "x": [short(row[1]) for row in rows],
        "y": [short(row[2]) for row in rows],
        "n": list(range(len(rows))),
    }
    worst = "; ".join(f"{each.label} {units.significant(each.average_precision or 0.0)}" for each in drawn[:4])
    of = f" of {len(known)} classes, the {len(drawn)} worst" if len(known) > len(drawn) else ""
    summary = f"Precision over recall of {model.name}{of}. Average precision, lowest first: {worst}."
    table = [["Class", "Average precision", "Precision", "Recall", "F1"], *(_line(each) for each in drawn)]
    title = f"Precision and recall of {model.name}"
    return Chart(title, summary, {"height": HEIGHT, "encoding": encoding, "layer": layers}, data, len(rows), table)


def _line(each: ClassFigures) -> list[str]:
    shares = [units.score(value, "recall") for value in (each.precision, each.recall, each.f1)]
    return [str(each.label), units.significant(each.average_precision or 0.0), *shares]


def _said(said: Said) -> str:
    if said.values:
        return _numbers(said.values)
    sure = "" if said.probability is None else f" ({units.score(said.probability, 'agreement')})"
    return f"{said.class_}{sure}"


def _numbers(values: list[float | None]) -> str:
    return ", ".join(units.ABSENT if each is None else units.significant(each, 4) for each in values)


def _field(value: str | float | int | None) -> str:
    if value is None:
        return "missing"
    return value if isinstance(value, str) else f"{value:.6g}"
