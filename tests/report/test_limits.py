"""What a report says of a run's limits: the sentences against a reading of the record by hand, whatever was found."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from decoct.report.limits import kept_of, limits_view, told
from decoct.report.records import as_results
from decoct.report.sentence import findings, shipped_of, subject_of
from decoct.steps.shipping.limits import Held

ASKED = {"max_quality_loss": 0.02, "max_size_bytes": 1000.0}
FOUND = st.fixed_dictionaries(
    {
        "max_quality_loss": st.sampled_from([-0.1, 0.0, 0.02, 0.03, None]),
        "max_size_bytes": st.sampled_from([10.0, 1000.0, 1001.0, 5e6, None]),
    }
)


def results_of(founds, *, models=(), metric="accuracy"):
    steps = []
    for i, found in enumerate(founds):
        held = Held(ASKED, found, metric)
        broken = {name: held.over(name) for name in held.broken}
        steps.append({"step": f"s{i}", "path": f"0{i}-s{i}", "found": found, "broken": broken, "words": held.words()})
    good = [each for each in steps if not each["broken"]]
    limits = {
        "asked": ASKED,
        "metric": metric,
        "reference": "teacher",
        "reference_quality": 0.9,
        "kept": good[-1]["step"] if good else None,
        "kept_path": good[-1]["path"] if good else None,
        "nearest": None if good else steps[0]["step"],
        "steps": steps,
    }
    return as_results({"task": {"metric": metric, "direction": "max"}, "models": list(models), "limits": limits})


def keeps(found):
    return all(found[name] is not None and found[name] <= asked for name, asked in ASKED.items())


@given(st.lists(FOUND, min_size=1, max_size=5))
def test_the_last_that_keeps_them_is_named_and_so_is_what_broke_after_it(founds):
    results = results_of(founds)
    text, tone = told(results)
    good = [i for i, found in enumerate(founds) if keeps(found)]
    if not good:
        assert text.startswith("No artifact of this run keeps its limits, so none is kept. The nearest is s0 (00-s0): ")
        assert (tone, kept_of(results)) == ("worse", None)
        assert findings(results)[0].text == text
        return
    assert text.startswith(f"Kept is s{good[-1]} (0{good[-1]}-s{good[-1]})")
    assert [f"s{i} broke" in text for i in range(len(founds))] == [i > good[-1] for i in range(len(founds))]
    assert tone == ("better" if good[-1] == len(founds) - 1 else "warning")
    assert shipped_of(results) == subject_of(results) == kept_of(results)
    assert kept_of(results).step == f"s{good[-1]}"


@given(st.lists(FOUND, min_size=1, max_size=5))
def test_the_table_says_which_step_broke_which_limit(founds):
    view = limits_view(results_of(founds))
    for found, row in zip(founds, view.rows, strict=True):
        for (name, asked), cell in zip(ASKED.items(), row.cells, strict=True):
            value = found[name]
            assert bool(cell.over) == (value is not None and value > asked)
            assert (cell.text == "not measured") == (value is None)
            assert (name in row.state) == (value is None or value > asked)
    assert sum(row.state == "kept" for row in view.rows) == any(map(keeps, founds))


def test_amounts_are_in_the_units_of_people():
    view = limits_view(results_of([{"max_quality_loss": 0.045, "max_size_bytes": 21_000.0}]))
    assert view.headings == [("Quality lost", "at most 2.0 points"), ("File", "at most 1.00 kB")]
    assert [(cell.text, cell.over) for cell in view.rows[0].cells] == [
        ("4.5 points", "2.5 points too much"),
        ("21.0 kB", "20.0 kB too much"),
    ]


def test_what_is_kept_is_as_the_benchmark_measured_it():
    model = {"name": "small", "step": "s0", "quality": {"accuracy": 0.91}, "split": "test"}
    good = {"max_quality_loss": 0.01, "max_size_bytes": 10.0}
    kept = kept_of(results_of([good], models=[model]))
    assert (kept.name, kept.quality, kept.split) == ("small", {"accuracy": 0.91}, "test")
    kept = kept_of(results_of([good]))
    assert (kept.name, kept.split, kept.file_bytes) == ("s0", "validation", 10)
    assert round(kept.quality["accuracy"], 6) == 0.89


def test_a_run_without_limits_says_nothing_of_them():
    results = as_results({"models": []})
    assert (told(results), limits_view(results), kept_of(results)) == (None, None, None)
