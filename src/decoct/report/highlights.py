"""The few large figures at the head of a page."""

from __future__ import annotations

from dataclasses import dataclass

from decoct.report import units
from decoct.report.chain import ALONE, STUDENT, is_teacher, teacher_of
from decoct.report.records import ModelRecord, Results
from decoct.report.sentence import SAME_SPEED, decided, gain, noun, speedup, subject_of


@dataclass(frozen=True)
class Highlight:
    """A figure, what it counts, the two values behind it, and whether it is good news ("better", "worse", "same"), or a
    difference that may be chance ("open")."""

    figure: str
    caption: str
    detail: str
    tone: str


def highlights(results: Results) -> list[Highlight]:
    """Speed, size and quality of the model at the end against the teacher, and what the teaching gave."""
    model = subject_of(results)
    teacher = teacher_of(results, model)
    if model is None or teacher is None or is_teacher(model) or results.failed:
        return []
    found = []
    faster = speedup(model, teacher)
    if faster:
        detail = f"{units.milliseconds(model.p50)} against {units.milliseconds(teacher.p50)}"
        noisy = any(each.latency is not None and each.latency.noisy for each in (model, teacher))
        found.append(_times(faster, "faster", "slower", detail, noisy=noisy))
    if model.file_bytes and teacher.file_bytes:
        detail = f"{units.size(model.file_bytes)} against {units.size(teacher.file_bytes)}"
        found.append(_times(teacher.file_bytes / model.file_bytes, "smaller", "larger", detail))
    found += _difference(results, model, teacher, "than the teacher")
    student, alone = results.model(STUDENT), results.model(ALONE)
    if student and alone:
        found += _difference(results, student, alone, "than the student alone")
    return found


def _times(ratio: float, better: str, worse: str, detail: str, *, noisy: bool = False) -> Highlight:
    if max(ratio, 1 / ratio) < SAME_SPEED:
        return Highlight("1×", f"as {'fast' if better == 'faster' else 'large'} as the teacher", detail, "same")
    good = ratio > 1
    figure = f"{units.times(max(ratio, 1 / ratio))}×"
    caption = f"{better if good else worse} than the teacher"
    if noisy:
        return Highlight(figure, f"{caption}, measured with noise", detail, "open")
    return Highlight(figure, caption, detail, "better" if good else "worse")


def _difference(results: Results, model: ModelRecord, other: ModelRecord, than: str) -> list[Highlight]:
    """The tile of a difference in quality: good or bad news only where an interval over seeds decides it."""
    metric = results.metric
    if metric not in model.quality or metric not in other.quality or not model.graded_like(other):
        return []
    mine, theirs = model.quality[metric], other.quality[metric]
    detail = f"{units.score(mine, metric)} against {units.score(theirs, metric)}"
    difference = gain(results, mine, theirs)
    amount = units.spread(abs(difference), metric)
    if not amount.strip("0."):
        label = units.label(metric)
        return [Highlight("±0", f"{label} is no different {than.replace('than', 'from')}", detail, "same")]
    sign = units.MINUS if mine < theirs else "+"
    of = f"points of {noun(metric)}" if units.is_share(metric) else f"in {noun(metric)}"
    verdict = "better" if difference > 0 else "worse"
    tone = decided(results, model.name, other.name)
    caption = f"{of}: {verdict} {than}" + (", which may be chance" if tone == "open" else "")
    return [Highlight(f"{sign}{amount}", caption, detail, tone)]
