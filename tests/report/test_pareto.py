import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoct.report.colours import Colours
from decoct.report.pareto import front, pareto
from decoct.report.runs import read_runs

points = st.lists(st.tuples(st.integers(0, 8).map(float), st.integers(0, 8).map(float)), min_size=1, max_size=12)


def drawn(folders, cost):
    return pareto(read_runs(folders), cost, Colours({}, []))


@given(points)
def test_the_front_is_what_no_point_beats(found):
    best = front(found)
    for i, (x, y) in enumerate(found):
        beaten = any((a <= x and b >= y) and (a, b) != (x, y) for a, b in found)
        assert (i not in best) == beaten
    assert [found[i][0] for i in best] == sorted(found[i][0] for i in best)


def test_quality_against_latency(write, records):
    [chart] = drawn([write(records.digits(5))], "latency")
    front_names = [name for name, on in zip(chart.data["name"], chart.data["front"]) if on]
    assert set(front_names) == {"teacher", "student", "student_int8"}
    assert "Beaten by at least one of them: student_alone." in chart.summary
    assert chart.spec["encoding"]["x"]["scale"]["type"] == "log"


def test_where_less_is_better_the_front_turns(write, records):
    [chart] = drawn([write(records.regression())], "size")
    on = {name for name, each in zip(chart.data["name"], chart.data["front"]) if each}
    assert on == {"teacher", "student", "student_int8"}


def test_one_point_is_no_picture(write, records):
    results = records.digits(1)
    results["models"] = results["models"][:1]
    assert drawn([write(results)], "size") == []


def test_labels_do_not_cover_each_other(write, records):
    results = records.digits(1)
    for model in results["models"]:
        model["file_bytes"], model["quality"]["accuracy"] = 50_000, 0.98
    [chart] = drawn([write(results)], "size")
    assert len(set(zip(chart.data["left"], chart.data["dy"]))) == 4


@pytest.mark.parametrize(("factor", "kind"), [(7.9, "linear"), (8.0, "linear"), (8.1, "log")])
def test_costs_more_than_eight_times_apart_are_drawn_on_a_logarithmic_axis(write, records, factor, kind):
    results = records.digits(1)
    for number, model in enumerate(results["models"]):
        model["file_bytes"] = 10_000 if number else int(10_000 * factor)
    [chart] = drawn([write(results)], "size")
    assert chart.spec["encoding"]["x"]["scale"]["type"] == kind


def test_times_of_different_runtimes_stand_in_no_common_picture(write, records):
    """The text says that they are not compared; of three ways two have two models each."""
    results = records.digits(1)
    names = [model["name"] for model in results["models"]]
    assert names == ["teacher", "student_alone", "student", "student_int8"]
    for name, runtime in zip(names, ("torch", "torch", "onnxruntime", "onnxruntime")):
        next(each for each in results["models"] if each["name"] == name)["latency"]["runtime"] = runtime
    results["models"].append(records.model("other", 0.9, latency=records.latency(0.01, threads=4)))
    charts = drawn([write(results)], "latency")
    assert [chart.data["name"] for chart in charts] == [["teacher", "student_alone"], ["student", "student_int8"]]
    assert ["torch" in charts[0].title, "onnxruntime" in charts[1].title] == [True, True]
    assert all("Not drawn, measured in another way: other." in chart.summary for chart in charts)
    assert [len(chart.data["name"]) for chart in drawn([write(results, name="sizes")], "size")] == [5]


def test_runs_on_other_machines_or_other_data_are_not_joined(write, records):
    one, two = records.digits(1), records.digits(1)
    two["machine"] = {**two["machine"], "cpu": "another one"}
    folders = [write(one, name="one"), write(two, name="two")]
    assert len(drawn(folders, "latency")) == 2
    assert len(drawn(folders, "size")) == 1
    two["data"] = {**two["data"], "fingerprint": "other data"}
    folders = [folders[0], write(two, name="three")]
    [chart] = drawn(folders, "size")
    assert {name.partition(":")[0] for name in chart.data["name"]} == {"one"}
