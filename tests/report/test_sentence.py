import copy
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoct.report.sentence import findings, noun, sentences

sizes = st.one_of(st.none(), st.floats(1e-3, 1e9))
shares = st.one_of(st.none(), st.floats(0, 1))


def two(teacher: dict[str, Any], student: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "task": {"metric": "accuracy", "direction": "max"},
        "models": [{"name": "teacher", **teacher}, {"name": "student", **student}],
        **more,
    }


def timed(p50: float, **more: Any) -> dict[str, Any]:
    return {"latency": {"runtime": "onnxruntime", "threads": 1, "batch": 1, "p50_ms": p50, **more}}


def test_the_sentences_of_a_good_run(records):
    told = sentences(records.digits(5))
    assert told[0] == (
        "The student answers 9.3 times faster than its teacher and its file is 12 times smaller; "
        "it loses 0.4 points of accuracy (98.1 % against 98.5 %)."
    )
    assert told[1] == (
        "Taught by the teacher, the student is 1.2 points better than the same student trained alone "
        "(95 % interval 0.4 to 2.0 over 5 seeds)."
    )
    assert "It gives the teacher's answer on 98.6 % of the 360 test samples." in told


@pytest.mark.parametrize(
    ("metric", "told"), [("accuracy", "accuracy"), ("rmse", "RMSE"), ("f1", "F1"), ("miou", "mean IoU"), ("r2", "R²")]
)
def test_names_of_metrics_stand_in_a_sentence(metric: str, told: str) -> None:
    assert noun(metric) == told


def test_one_seed_allows_no_interval(records):
    finding = findings(records.digits(1))[1]
    assert finding.tone == "open"
    assert "one seed, so there is no interval" in finding.text


def test_the_difference_is_told_without_a_comparison(records):
    results = records.digits(1)
    results["comparisons"] = []
    assert "1.2 points better than the same student trained alone (measured with one seed" in sentences(results)[1]


def test_an_interval_around_zero_shows_nothing(records):
    results = records.digits(5)
    results["comparisons"][0] |= {"mean": -0.003, "low": -0.009, "high": 0.003}
    finding = findings(results)[1]
    assert finding.tone == "open"
    assert "0.3 points worse" in finding.text
    assert "interval −0.9 to 0.3" in finding.text
    assert "contains 0" in finding.text


def test_a_worse_student_is_called_worse(records):
    results = records.digits(5)
    results["comparisons"][0] |= {"mean": -0.02, "low": -0.03, "high": -0.01}
    finding = findings(results)[1]
    assert finding.tone == "worse"
    assert "2.0 points worse" in finding.text


def test_an_error_that_falls_is_better(records):
    results = records.regression()
    results["seeds"] = [0, 1, 2]
    differences = [-0.016, -0.017, -0.018]
    results["comparisons"] = [
        {"better": "student", "than": "student_alone", "metric": "rmse", "differences": differences, "mean": -0.017,
         "low": -0.0195, "high": -0.0145, "n": 3}
    ]  # fmt: skip
    told = findings(results)
    assert "its RMSE is 0.0120 higher, which is worse (0.454 against 0.442)" in told[0].text
    assert told[1].tone == "better"
    assert "0.0170 better in RMSE than the same student trained alone" in told[1].text
    assert "interval 0.0145 to 0.0195" in told[1].text


def test_without_a_teacher_the_model_is_described(records):
    results = records.digits(1)
    results["models"] = [each for each in results["models"] if each["name"] == "student"]
    told = sentences(results)[0]
    assert told.startswith("The student reaches an accuracy of 98.1 %, answers in 31.0 µs and takes 52.0 kB on disk.")
    assert "no teacher" in told


def test_a_noisy_latency_is_said(records):
    results = records.digits(1)
    results["models"][2]["latency"] |= {"noisy": True, "reason": "p99 is 9.0 times p50"}
    assert any("latency of student (p99 is 9.0 times p50) was noisy" in text for text in sentences(results))


def test_unlike_runtimes_are_not_compared():
    results = two(timed(9.0), {"latency": {"runtime": "torch", "threads": 1, "batch": 1, "p50_ms": 1.0}})
    told = sentences(results)
    assert "times" not in told[0]
    assert any("not compared" in text for text in told)


@pytest.mark.parametrize("metric", ["accuracy", "auc", "rmse", "perplexity"])
def test_grammar_of_an_article(metric):
    model = {"name": "m", "quality": {metric: 0.5}}
    told = sentences({"task": {"metric": metric}, "models": [model]})[0]
    assert (" a perplexity" if metric == "perplexity" else " an ") in told


@given(sizes, sizes, sizes, sizes, shares, shares, st.booleans())
def test_any_figures_give_plain_sentences_that_tell_the_truth(p_t, p_s, b_t, b_s, q_t, q_s, noisy):
    teacher = {**timed(p_t), "file_bytes": b_t, "quality": {"accuracy": q_t}}
    student = {**timed(p_s, noisy=noisy), "file_bytes": b_s, "quality": {"accuracy": q_s}}
    results = two(teacher, student)
    before = copy.deepcopy(results)
    told = sentences(results)
    assert results == before
    assert all(text.endswith(".") and not re.search(r"nan|None|inf\b| {2}|\{\}", text) for text in told)
    lead = told[0]
    if p_t and p_s:
        assert ("faster" in lead) == (p_t / p_s >= 1.05)
        assert ("slower" in lead) == (p_s / p_t >= 1.05)
    if b_t and b_s:
        assert ("smaller" in lead) == (b_t / b_s >= 1.02)
        assert ("larger" in lead) == (b_s / b_t >= 1.02)
    if q_t is not None and q_s is not None:
        points = 100 * (q_s - q_t)
        assert (" gains " in lead) == (points > 0 and f"{points:.1f}" != "0.0")
        assert (" loses " in lead) == (points < 0 and f"{-points:.1f}" != "0.0")
    assert any("noisy" in text for text in told) == noisy


@given(st.lists(st.floats(-0.2, 0.2), min_size=2, max_size=9), st.sampled_from(["max", "min"]))
def test_the_interval_agrees_with_its_verdict(differences, direction):
    mean = math.fsum(differences) / len(differences)
    half = max(abs(each - mean) for each in differences)
    compared = {"better": "student", "than": "student_alone", "metric": "rmse", "differences": differences,
                "mean": mean, "low": mean - half, "high": mean + half, "n": len(differences)}  # fmt: skip
    results = two({}, {}, comparisons=[compared])
    results["task"] = {"metric": "rmse", "direction": direction}
    finding = next(each for each in findings(results) if "interval" in each.text)
    improvement = -mean if direction == "min" else mean
    if mean - half <= 0 <= mean + half:
        assert finding.tone == "open"
    else:
        assert finding.tone == ("better" if improvement > 0 else "worse")
