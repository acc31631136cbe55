"""What a run cost and what it gained, in plain sentences; pure functions of the results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from decoct.report import units
from decoct.report.chain import (
    ALONE,
    STUDENT,
    TEACHER,
    compressed,
    end_of,
    is_teacher,
    size_told,
    teacher_of,
    told,
    twin_of,
)
from decoct.report.limits import kept_of
from decoct.report.limits import told as limits_told
from decoct.report.records import Comparison, Failed, ModelRecord, Results, as_results

SAME_SPEED, SAME_SIZE = 1.05, 1.02
"""Ratios below these are called equal."""
LONGEST = 600
"""Characters of an error that a sentence holds."""
MOST = 8
"""Compressed models that get a sentence of their own."""

Tone = Literal["lead", "better", "worse", "open", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One or two sentences and how they are meant; "open" is a difference that may be chance."""

    text: str
    tone: Tone


def sentences(results: Results | Mapping[str, Any]) -> list[str]:
    """The findings as plain text, the most important first.

    >>> sentences({"models": []})
    ['This run evaluated no model.']
    """
    return [finding.text for finding in findings(results)]


def findings(results: Results | Mapping[str, Any]) -> list[Finding]:
    """What the run cost and gained: against the teacher, against the student alone, and what weakens the figures."""
    records = as_results(results)
    if records.unfinished:
        return [Finding("This run did not end: it was stopped, or goes on. decoct run goes on from there.", "lead")]
    if records.failed is None:
        return _figures(records)
    told = [Finding(each.text, "note" if each.tone == "lead" else each.tone) for each in _figures(records)]
    return [Finding(_failed(records.failed), "lead"), *(told if records.models else [])]


def _failed(failed: Failed) -> str:
    message = " ".join(failed.message.split())
    shown = message if len(message) <= LONGEST else f"{message[:LONGEST]} …"
    code = "" if failed.exit_code is None else f" (exit code {failed.exit_code})"
    after = "What is shown is of the steps before it; no file of it or of a step after it is."
    return f"This run failed at the step {failed.step}{code}: {shown.rstrip('.')}. {after}"


def _figures(records: Results) -> list[Finding]:
    subject = subject_of(records)
    if subject is None:
        limits = limits_told(records)
        return [Finding("This run evaluated no model." if limits is None else limits[0], "lead")]
    found = _with_limits(records, Finding(_cost(records, subject, teacher_of(records, subject)), "lead"))
    found += _gain(records, subject)
    found += _fidelity(records, subject)
    found += _integers(records)
    found += [Finding(_cost(records, each, teacher_of(records, each)), "note") for each in _others(records, subject)]
    found += _warnings(records)
    return found


def _with_limits(results: Results, cost: Finding) -> list[Finding]:
    """The first sentence, and what became of the run's limits; that no artifact keeps them comes first."""
    found = limits_told(results)
    if found is None:
        return [cost]
    text, tone = found
    if results.limits is not None and results.limits.kept is None:
        return [Finding(text, "lead"), Finding(cost.text, "note")]
    return [cost, Finding(text, "warning" if tone == "warning" else "better")]


def subject_of(results: Results) -> ModelRecord | None:
    """The model the first sentence is about: the one that limits keep, else the compressed one at the end of the chain,
    else the student, else the first that is no teacher, else the teacher."""
    end, models = kept_of(results) or end_of(results), results.models
    if end is not None:
        return end
    pupils = [model for model in models if not is_teacher(model)]
    students = [model for model in pupils if model.name != ALONE]
    return results.model(STUDENT) or next(iter(students + pupils + models), None)


def shipped_of(results: Results) -> ModelRecord | None:
    """The model that ships: the one that is kept where there are limits, else the one at the end of the chain: the
    compressed one, else the last that is neither a teacher nor alone."""
    end = kept_of(results) or end_of(results)
    if end is not None:
        return end
    students = [model for model in results.models if not is_teacher(model) and model.name != ALONE]
    return students[-1] if students else subject_of(results)


def speedup(model: ModelRecord, teacher: ModelRecord) -> float | None:
    """Median latency of the teacher over that of the model; None unless both were measured in the same way."""
    if not model.measured_like(teacher):
        return None
    return teacher.p50 / model.p50 if model.p50 and teacher.p50 else None


def gain(results: Results, value: float, reference: float) -> float:
    """How much better `value` of the main metric is than `reference`; negative where it is worse."""
    less = units.less_is_better(results.metric, results.task.direction)
    return reference - value if less else value - reference


def decided(results: Results, better: str, than: str) -> Tone:
    """What the seeds decide between two models in the main metric: better, worse, or open.

    Only an interval over seeds that does not contain 0 decides.
    """
    for each in results.comparisons:
        metric = each.metric or results.metric
        if {each.better, each.than} == {better, than} and metric == results.metric and each.mean is not None:
            tone = compare(results, each).tone
            turned: dict[Tone, Tone] = {"better": "worse", "worse": "better"}
            return tone if each.better == better else turned.get(tone, tone)
    return "open"


def names(model: ModelRecord) -> str:
    """The model as the subject of a sentence."""
    known = {TEACHER: "The teacher", STUDENT: "The student", ALONE: "The student trained alone"}
    return known.get(model.name, model.name)


def join(parts: list[str]) -> str:
    """Parts as a list in a sentence.

    >>> join(["a"]), join(["a", "b"]), join(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def _others(results: Results, subject: ModelRecord) -> list[ModelRecord]:
    if teacher_of(results) is None:
        return []
    skipped = {ALONE, subject.name}
    return [model for model in results.models if model.name not in skipped and not is_teacher(model)][:MOST]


def _cost(results: Results, model: ModelRecord, teacher: ModelRecord | None) -> str:
    if teacher is None or teacher is model:
        return _alone(results, model)
    speed, size, quality = _speed(model, teacher), _size(model, teacher), _quality(results, model, teacher)
    gains = join([part for part in (speed, size) if part]) if speed or size else ""
    text = "; ".join(part for part in (gains, quality) if part)
    if not text:
        return f"{names(model)} was evaluated, but nothing was measured on both it and its teacher."
    if text.startswith(("its ", "it ")):
        text = f"against its teacher, {text}"
        return f"{names(model)}: {text}."
    return f"{names(model)} {text}."


def _alone(results: Results, model: ModelRecord) -> str:
    value, parts = model.quality.get(results.metric), []
    if value is not None:
        parts.append(f"reaches {_article(results.metric)} {noun(results.metric)} of {_score(value, results.metric)}")
    if model.p50:
        parts.append(f"answers in {units.milliseconds(model.p50)}")
    if model.file_bytes:
        parts.append(f"takes {units.size(model.file_bytes)} on disk")
    told = join(parts) if parts else "was evaluated, but without quality, latency or size"
    other = "student" if is_teacher(model) else "teacher"
    return f"{names(model)} {told}. There is no {other} in these results to compare it with."


def _article(metric: str) -> str:
    word = noun(metric)
    return "an" if word[0] in ("aeio" if word[0].islower() else "AEFHILMNORSX") else "a"


def noun(metric: str) -> str:
    """A metric inside a sentence: accuracy, RMSE, F1, mean IoU."""
    return " ".join(word.lower() if word[1:].islower() else word for word in units.label(metric).split())


def _score(value: float, metric: str) -> str:
    return units.score(value, metric)


def _speed(model: ModelRecord, teacher: ModelRecord) -> str:
    ratio = speedup(model, teacher)
    if ratio is None:
        return ""
    if max(ratio, 1 / ratio) < SAME_SPEED:
        return "answers as fast as its teacher"
    way = "faster" if ratio > 1 else "slower"
    rough = "about " if any(each.latency is not None and each.latency.noisy for each in (model, teacher)) else ""
    return f"answers {rough}{units.times(max(ratio, 1 / ratio))} times {way} than its teacher"


def _size(model: ModelRecord, teacher: ModelRecord) -> str:
    file = ("its file is {} times smaller", "its file is {} times larger", "its file is as large as the teacher's")
    count = ("it has {} times fewer parameters", "it has {} times more parameters", "it has as many parameters")
    for mine, theirs, (less, more, same) in (
        (model.file_bytes, teacher.file_bytes, file),
        (model.parameters, teacher.parameters, count),
    ):
        if not mine or not theirs:
            continue
        ratio = theirs / mine
        if max(ratio, 1 / ratio) < SAME_SIZE:
            return same
        return (less if ratio > 1 else more).format(units.times(max(ratio, 1 / ratio)))
    return ""


def _quality(results: Results, model: ModelRecord, teacher: ModelRecord) -> str:
    metric = results.metric
    mine, theirs = model.quality.get(metric), teacher.quality.get(metric)
    if mine is None or theirs is None or not model.graded_like(teacher):
        return ""
    values = f"({_score(mine, metric)} against {_score(theirs, metric)})"
    difference = gain(results, mine, theirs)
    amount = units.spread(abs(difference), metric)
    if _vanishes(amount):
        return f"its {noun(metric)} is the same {values}"
    if units.is_share(metric) and not units.less_is_better(metric, results.task.direction):
        verb = "gains" if difference > 0 else "loses"
        return f"it {verb} {amount} {_points(amount)} of {noun(metric)} {values}"
    way, verdict = ("higher" if mine > theirs else "lower"), ("better" if difference > 0 else "worse")
    return f"its {noun(metric)} is {amount}{_unit(metric, amount)} {way}, which is {verdict} {values}"


def _vanishes(amount: str) -> bool:
    return not amount.strip("0.")


def _points(amount: str) -> str:
    return "point" if amount == "1.0" else "points"


def _unit(metric: str, amount: str) -> str:
    return f" {_points(amount)}" if units.is_share(metric) else ""


def _gain(results: Results, subject: ModelRecord) -> Iterator[Finding]:
    for each in results.comparisons:
        if each.mean is not None and results.model(each.better) is not None:
            yield compare(results, each)
    known = any(each.better == subject.name and each.mean is not None for each in results.comparisons)
    alone = results.model(ALONE)
    if compressed(results, subject):
        subject = results.model(STUDENT) or subject
        known = any(each.better == STUDENT and each.mean is not None for each in results.comparisons)
    if known or alone is None or alone is subject or subject.name != STUDENT:
        return
    mine, theirs = subject.quality.get(results.metric), alone.quality.get(results.metric)
    if mine is not None and theirs is not None and subject.graded_like(alone):
        difference = mine - theirs
        yield compare(results, Comparison(better=subject.name, than=ALONE, mean=difference, n=1))


def compare(results: Results, each: Comparison, *, over: str = "") -> Finding:
    """What a comparison says; `over`: what its interval is over, where not over seeds."""
    metric = each.metric or results.metric
    direction = results.task.direction if metric == results.metric else ""
    sign = -1.0 if units.less_is_better(metric, direction) else 1.0
    mean = sign * (each.mean or 0.0)
    amount = units.spread(abs(mean), metric)
    than = "the same student trained alone" if each.than == ALONE else each.than
    if each.better == STUDENT and each.than == ALONE:
        start = "Taught by the teacher, the student"
    else:
        known = results.model(each.better)
        start = names(known) if known else each.better
    scope = "" if metric == results.metric and units.is_share(metric) else f" in {noun(metric)}"
    if _vanishes(amount):
        text = f"{start} is as good as {than}{scope}"
    else:
        way = "better" if mean > 0 else "worse"
        text = f"{start} is {amount}{_unit(metric, amount)} {way}{scope} than {than}"
    return _with_interval(text, each, metric, sign, mean, over)


def _with_interval(text: str, each: Comparison, metric: str, sign: float, mean: float, over: str = "") -> Finding:
    seeds = each.n or len(each.differences)
    if each.low is None or each.high is None or (seeds < 2 and not over):
        counted = "one seed" if seeds <= 1 else f"{seeds} seeds"
        return Finding(f"{text} (measured with {counted}, so there is no interval and it may be chance).", "open")
    low, high = sorted((sign * each.low, sign * each.high))
    bounds = " to ".join(_signed(bound, metric) for bound in (low, high))
    interval = f"{100 * each.level:.0f} % interval {bounds} over {over or f'{seeds} seeds'}"
    nothing = "this is no clear difference" if over else "these seeds show no difference"
    if low <= 0 <= high:
        return Finding(f"{text} ({interval}). The interval contains 0: {nothing}.", "open")
    return Finding(f"{text} ({interval}).", "better" if mean > 0 else "worse")


def _signed(value: float, metric: str) -> str:
    text = units.spread(abs(value), metric)
    return f"{units.MINUS}{text}" if value < 0 and not _vanishes(text) else text


def _fidelity(results: Results, subject: ModelRecord) -> Iterator[Finding]:
    agreement = subject.fidelity.get("agreement")
    if agreement is None or is_teacher(subject):
        return
    where = f" {subject.split}" if subject.split else ""
    of = f"the {subject.n:,}{where} samples" if subject.n else f"the{where} samples"
    if results.task.item != "sample":
        of = f"the {results.task.item}s of {of}"
    start = names(subject) if compressed(results, subject) else "It"
    yield Finding(f"{start} gives the teacher's answer on {units.score(agreement, 'agreement')} of {of}.", "note")


def _integers(results: Results) -> Iterator[Finding]:
    """Of each model in integers: whether that paid here, and which of its operators stayed in float."""
    for model in [each for each in results.models if each.quantized][:MOST]:
        twin = twin_of(results, model)
        ratio = speedup(model, twin) if twin else None
        if twin is not None and ratio is not None:
            yield _paid(model, twin, ratio)
        elif model.speed.words:
            yield Finding(f"{names(model)} is {join(model.speed.words)}, where it was written.", "worse")
        kernels = told(model.kernels, f" of {model.name}")
        if kernels:
            yield Finding(kernels, "note" if model.kernels.int8 == model.kernels.total else "warning")


def _paid(model: ModelRecord, twin: ModelRecord, ratio: float) -> Finding:
    its, size = f"its float file ({twin.name}) on this machine", size_told(model, twin)
    noisy = any(each.latency is not None and each.latency.noisy for each in (model, twin))
    if max(ratio, 1 / ratio) < SAME_SPEED:
        return Finding(f"{names(model)} answers as fast as {its}: integers gained no speed here.{size}", "note")
    way = "faster" if ratio > 1 else "slower"
    text = f"{names(model)} answers {units.times(max(ratio, 1 / ratio))} times {way} than {its}"
    if noisy:
        return Finding(f"{text}, measured with noise, so that it may be chance.{size}", "open")
    if ratio > 1:
        return Finding(f"{text}.{size}", "better")
    return Finding(f"{text}: integers did not pay here.{size}", "worse")


def _warnings(results: Results) -> Iterator[Finding]:
    noisy = [(model.name, model.latency.reason) for model in results.models if model.latency and model.latency.noisy]
    if noisy:
        told = join([f"{name} ({reason})" if reason else name for name, reason in noisy])
        yield Finding(
            f"The latency of {told} was noisy: take the speed as rough and measure again on a quiet machine.", "warning"
        )
    teacher = teacher_of(results)
    if teacher is not None and teacher.latency is not None:
        unlike = [m.name for m in results.models if m.latency and not m.latency.comparable(teacher.latency)]
        if unlike:
            yield Finding(
                f"{join(unlike)} and the teacher were measured in different ways (runtime, threads or batch), so "
                "their speeds are not compared.",
                "warning",
            )
    if teacher is not None:
        other = [m.name for m in results.models if results.metric in m.quality and not m.graded_like(teacher)]
        if other:
            yield Finding(
                f"{join(other)} and the teacher were graded on different samples, so their quality is not compared.",
                "warning",
            )
    differ = [model for model in results.models if model.verified.get("agreement", 1.0) < 0.9995]
    for model in differ[:MOST]:
        share = units.score(model.verified["agreement"], "agreement")
        yield Finding(
            f"The exported file of {model.name} and the model it came from give the same answer on only {share} of "
            "the samples checked.",
            "warning",
        )
