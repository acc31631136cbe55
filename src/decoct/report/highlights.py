"""The few large figures at the head of a page."""

from __future__ import annotations

from dataclasses import dataclass

from decoct.report import units
from decoct.report.chain import ALONE, STUDENT, is_teacher, teacher_of
from decoct.report.records import Results
from decoct.report.sentence import gain, noun, speedup, subject_of


@dataclass(frozen=True)
class Highlight:
    """A figure, what it counts, the two values behind it, and whether it is good news ("better", "worse", "same")."""

    figure: str
    caption: str
    detail: str
    tone: str


def highlights(results: Results) -> list[Highlight]:
    """Speed, size and quality of the model at the end against the teacher, and what the teaching gave."""
    model = subject_of(results)
    teacher = teacher_of(results, model)
    if model is None or teacher is None or is_teacher(model):
        return []
    found = []
    faster = speedup(model, teacher)
    if faster:
        detail = f"{units.milliseconds(model.p50)} against {units.milliseconds(teacher.p50)}"
        found.append(_times(faster, "faster", "slower", detail))
    if model.file_bytes and teacher.file_bytes:
        detail = f"{units.size(model.file_bytes)} against {units.size(teacher.file_bytes)}"
        found.append(_times(teacher.file_bytes / model.file_bytes, "smaller", "larger", detail))
    mine, theirs = (each.quality.get(results.metric) for each in (model, teacher))
    if mine is not None and theirs is not None:
        detail = f"{units.score(mine, results.metric)} against {units.score(theirs, results.metric)}"
        found.append(_difference(results, mine, theirs, "than the teacher", detail))
    student, alone = results.model(STUDENT), results.model(ALONE)
    if student and alone and results.metric in student.quality and results.metric in alone.quality:
        mine, theirs = student.quality[results.metric], alone.quality[results.metric]
        detail = f"{units.score(mine, results.metric)} against {units.score(theirs, results.metric)}"
        found.append(_difference(results, mine, theirs, "than the student alone", detail))
    return found


def _times(ratio: float, better: str, worse: str, detail: str) -> Highlight:
    if max(ratio, 1 / ratio) < 1.05:
        return Highlight("1×", f"as {'fast' if better == 'faster' else 'large'} as the teacher", detail, "same")
    good = ratio > 1
    figure = f"{units.times(max(ratio, 1 / ratio))}×"
    return Highlight(figure, f"{better if good else worse} than the teacher", detail, "better" if good else "worse")


def _difference(results: Results, mine: float, theirs: float, than: str, detail: str) -> Highlight:
    difference = gain(results, mine, theirs)
    amount = units.spread(abs(difference), results.metric)
    label = units.label(results.metric)
    if not amount.strip("0."):
        return Highlight("±0", f"{label} is no different {than.replace('than', 'from')}", detail, "same")
    sign = units.MINUS if mine < theirs else "+"
    of = f"points of {noun(results.metric)}" if units.is_share(results.metric) else f"in {noun(results.metric)}"
    verdict = "better" if difference > 0 else "worse"
    return Highlight(f"{sign}{amount}", f"{of}: {verdict} {than}", detail, verdict)
