import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoct.report.pareto import front, pareto
from decoct.report.records import read_runs

points = st.lists(st.tuples(st.integers(0, 8).map(float), st.integers(0, 8).map(float)), min_size=1, max_size=12)


@given(points)
def test_the_front_is_what_no_point_beats(found):
    best = front(found)
    for i, (x, y) in enumerate(found):
        beaten = any((a <= x and b >= y) and (a, b) != (x, y) for a, b in found)
        assert (i not in best) == beaten
    assert [found[i][0] for i in best] == sorted(found[i][0] for i in best)


def test_quality_against_latency(write, records):
    chart = pareto(read_runs([write(records.digits(5))]), "latency")
    assert chart is not None
    front_names = [name for name, on in zip(chart.data["name"], chart.data["front"]) if on]
    assert set(front_names) == {"teacher", "student", "student_int8"}
    assert "Beaten by at least one of them: student_alone." in chart.summary
    assert chart.spec["encoding"]["x"]["scale"]["type"] == "log"


def test_where_less_is_better_the_front_turns(write, records):
    chart = pareto(read_runs([write(records.regression())]), "size")
    assert chart is not None
    on = {name for name, each in zip(chart.data["name"], chart.data["front"]) if each}
    assert on == {"teacher", "student", "student_int8"}


def test_one_point_is_no_picture(write, records):
    results = records.digits(1)
    results["models"] = results["models"][:1]
    assert pareto(read_runs([write(results)]), "size") is None


def test_labels_do_not_cover_each_other(write, records):
    results = records.digits(1)
    for model in results["models"]:
        model["file_bytes"], model["quality"]["accuracy"] = 50_000, 0.98
    chart = pareto(read_runs([write(results)]), "size")
    assert chart is not None
    assert len(set(zip(chart.data["left"], chart.data["dy"]))) == 4


@pytest.mark.parametrize(("factor", "kind"), [(7.9, "linear"), (8.0, "linear"), (8.1, "log")])
def test_costs_more_than_eight_times_apart_are_drawn_on_a_logarithmic_axis(write, records, factor, kind):
    results = records.digits(1)
    for number, model in enumerate(results["models"]):
        model["file_bytes"] = 10_000 if number else int(10_000 * factor)
    chart = pareto(read_runs([write(results)]), "size")
    assert chart.spec["encoding"]["x"]["scale"]["type"] == kind
