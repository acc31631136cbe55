import json
import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from decoct.report.charts import logged_once, training, validation
from decoct.report.colours import Colours
from decoct.report.curves import Curve, largest_triangles, read_log, thinned

COLOURS = Colours({}, [])


def reference(x, y, limit):
    """LTTB as Steinarsson's thesis words it, by whole triangle areas."""
    if len(x) <= limit:
        return list(range(len(x)))
    buckets = [[0]]
    inner = list(range(1, len(x) - 1))
    for k in range(limit - 2):
        buckets.append(inner[len(inner) * k // (limit - 2) : len(inner) * (k + 1) // (limit - 2)])
    buckets.append([len(x) - 1])
    kept = [0]
    for bucket, after in pairwise(buckets[1:]):
        cx, cy = sum(x[i] for i in after) / len(after), sum(y[i] for i in after) / len(after)
        ax, ay = x[kept[-1]], y[kept[-1]]
        areas = {i: abs(ax * (y[i] - cy) + x[i] * (cy - ay) + cx * (ay - y[i])) / 2 for i in bucket}
        kept.append(max(areas, key=areas.get))
    return [*kept, len(x) - 1]


values = st.lists(st.integers(-1000, 1000), min_size=1, max_size=200)


@given(values, st.integers(2, 50))
def test_thinning_keeps_the_ends_and_the_order(y, limit):
    kept = largest_triangles(range(len(y)), y, limit)
    assert len(kept) == min(len(y), limit)
    assert kept == sorted(set(kept))
    assert kept[0] == 0
    assert kept[-1] == len(y) - 1


def test_thinning_agrees_with_the_thesis():
    x = [float(i) for i in range(997)]
    y = [math.sin(i / 9) * math.exp(-i / 300) + 0.2 * math.sin(i * 1.7) for i in x]
    assert largest_triangles(x, y, 40) == reference(x, y, 40)


def test_a_spike_survives():
    y = [0.0] * 10_000
    y[4321] = 7.0
    assert max(thinned(Curve("s", 0, "total", list(map(float, range(10_000))), y), 100).y) == 7.0


def test_the_log_is_read_by_kind_step_seed_and_term(write, records):
    log = read_log(write(records.digits(2), records.log(2, steps=100)))
    found = {(curve.step, curve.seed, curve.name): curve for curve in log.losses}
    assert log.steps() == ["teacher", "student_alone", "student"]
    assert {name for step, _, name in found if step == "student"} == {"total", "kd", "cross_entropy"}
    kd = found[("student", 1, "kd")]
    assert kd.x == [10.0 * k for k in range(1, 11)]
    assert any(curve.varies() for curve in log.weights if curve.name == "kd")
    assert not any(curve.varies() for curve in log.weights if curve.name == "cross_entropy")
    assert {curve.name for curve in log.validation} == {"accuracy"}


def test_odd_lines_are_passed_over_and_counted(write, records):
    folder = write(records.digits(1), [])
    good = {"step": "s", "seed": 0, "kind": "train", "at": 3, "loss": 1.5}
    lines = [
        json.dumps(good),
        json.dumps({**good, "kind": "surprise"}),
        json.dumps({**good, "at": 4, "loss": math.nan}),
        json.dumps({**good, "at": 3, "loss": 1.25}),
        "[1, 2]",
        '{"step": "s", "kind": "tra',
    ]
    (folder / "log.jsonl").write_text("\n".join(lines), encoding="utf-8")
    log = read_log(folder)
    assert [(curve.x, curve.y) for curve in log.losses] == [([3.0], [1.25])]
    assert log.lost == 2


def test_no_log_no_curves(write, records):
    log = read_log(write(records.digits(1)))
    assert training(log, COLOURS) == []
    assert validation(log, "accuracy", COLOURS) is None


def test_pictures_of_training(write, records):
    log = read_log(write(records.digits(5), records.log(5)))
    titles = [chart.title for chart in training(log, COLOURS)]
    assert titles == [
        "Loss of teacher",
        "Loss of student_alone",
        "Loss of student",
        "Weights of student",
        "Learning rate",
    ]
    chart = validation(log, "accuracy", COLOURS)
    assert chart is not None
    assert chart.rows == 5 * 3 * 12
    assert all(len(chart.data[name]) == chart.rows for name in ("x", "y"))


def test_scheduled_settings_are_drawn_apart_from_the_weights(tmp_path):
    rows = [
        {"step": "student", "seed": 0, "step_number": n, "kind": "train", "loss": 1.0, "terms": {"kd": 1.0}}
        | {"weights": {"kd": 1 - n / 10, "v.2": 0.5, "kd.temperature": 8 - n / 2, "kd.confidence.at_least": 0.5}}
        for n in range(8)
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    titles = {chart.title: chart for chart in training(read_log(tmp_path), COLOURS)}
    assert titles["Weights of student"].data["group"]["levels"] == ["kd", "v.2"]
    assert titles["Temperature of student"].data["group"]["levels"] == ["kd.temperature"]
    assert "At least of student" not in titles


def test_agreement_of_teachers_is_drawn_apart_from_the_losses(tmp_path):
    terms = {"kd": 1.0, "agreement.a": 0.5, "agreement.teachers": 0.9, "say.a": 0.5, "say.b": 0.5}
    rows = [
        {
            "step": "student",
            "seed": 0,
            "step_number": n,
            "kind": "train",
            "loss": 1.0,
            "terms": terms | {"say.a": n / 9},
        }
        for n in range(8)
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = read_log(tmp_path)
    assert [curve.name for curve in log.losses] == ["total", "kd"]
    titles = {chart.title: chart for chart in training(log, COLOURS)}
    assert titles["Agreement in student"].data["group"]["levels"] == ["a", "teachers"]
    assert titles["Teachers of student"].data["group"]["levels"] == ["a", "b"]


def test_what_was_logged_once_is_said_and_not_drawn(write, records):
    """A line of one point is an empty frame."""
    lines = [line for line in records.log(1, steps=10) if line["kind"] == "train"]
    lines += [{**line, "kind": "validation", "scores": {"accuracy": 0.5}} for line in lines]
    log = read_log(write(records.digits(1), lines))
    assert [len(curve.x) for curve in (*log.losses, *log.validation)] == [1] * 10
    assert training(log, COLOURS) == []
    assert validation(log, "accuracy", COLOURS) is None
    told = logged_once(log, "accuracy")
    assert [text.partition(",")[0] for text in told] == [
        "Loss of teacher",
        "Loss of student_alone",
        "Loss of student",
        "Accuracy on validation data",
    ]
    assert "student 50.0 %" in told[-1]
    assert logged_once(read_log(write(records.digits(1), records.log(1), name="long")), "accuracy") == []
