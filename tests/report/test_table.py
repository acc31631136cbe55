from decoct.report.records import as_results
from decoct.report.table import filled, rows, table


def test_one_row_a_model_with_units(records):
    found = {row["Model"]: row for row in rows(records.digits(5))}
    assert list(found) == ["teacher", "student_alone", "student", "student_int8"]
    student = found["student"]
    assert student["Accuracy"] == "98.1 ± 0.4 %"
    assert student["Agreement"] == "98.6 %"
    assert found["teacher"]["Agreement"] == "–"
    assert (student["Parameters"], student["MACs"], student["File"]) == ("12.0 k", "310 k", "52.0 kB")
    assert (student["p50"], student["p99"], student["Runtime"]) == ("31.0 µs", "43.4 µs", "onnxruntime")
    assert student["Verified"] == "≤ 3.0e-05"


def test_all_rows_have_the_same_headings_and_only_text(records):
    for brief in (False, True):
        found = rows(records.digits(1), brief=brief)
        assert len({tuple(row) for row in found}) == 1
        assert all(isinstance(text, str) for row in found for text in row.values())
    assert len(rows(records.digits(1), brief=True)[0]) < len(rows(records.digits(1))[0])


def test_columns_that_no_model_fills_are_left_out(records):
    results = records.digits(1)
    for model in results["models"]:
        model["fidelity"], model["verified"] = {}, None
    headings = rows(results)[0]
    assert "Agreement" not in headings
    assert "Verified" not in headings


def test_a_cell_says_how_it_compares_with_the_teacher(records):
    results = as_results(records.digits(5))
    titles = [column.title for column in filled([results])]
    cells = dict(zip(titles, table(results, titles)[2].cells))
    notes = {title: cell.note for title, cell in cells.items() if cell.note}
    assert notes["Accuracy"] == "0.4 points worse"
    assert notes["File"] == "12× smaller"
    assert notes["p50"] == "9.3× faster"
    assert notes["Parameters"] == "13× fewer"


def test_a_smaller_error_is_better(records):
    results = as_results(records.regression())
    first = table(results, ["RMSE"])
    assert first[1].cells[0].note == "0.0290 worse"


def test_runs_of_unlike_columns_share_a_table(records):
    runs = [as_results(records.digits(1)), as_results(records.regression())]
    titles = [column.title for column in filled(runs)]
    assert {"Accuracy", "RMSE"} <= set(titles)
    assert all(len(row.cells) == len(titles) for run in runs for row in table(run, titles))


def test_no_models_no_rows():
    assert rows({}) == []
