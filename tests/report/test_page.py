import json
import re

import pytest

from decoct.errors import DataError
from decoct.report.page import embedded_json, write_page
from decoct.report.records import as_results
from decoct.report.table import rows
from pages import must_be_quiet, opened, words

HOSTILE = "<script>window.hacked=1</script></script><img src=x onerror=window.hacked=1>{{ 7*7 }}"
MOST_BYTES = 3_000_000


@pytest.mark.browser
@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_rendered_page_holds_the_table_and_the_pictures(browser, write, records, tmp_path, width, scheme):
    results = records.digits(5)
    path = write_page([write(results, records.log(5))], tmp_path / "report.html")
    page = opened(browser, path, width, scheme)
    must_be_quiet(page, path)
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    text = words(page)
    for row in rows(results):
        for cell in row.values():
            assert cell in text or cell == "–"
    assert "The student answers 9.3 times faster than its teacher" in text
    drawn = page.locator(".chart svg.marks, .chart canvas.marks")
    assert drawn.count() == page.locator(".chart").count() == 8
    assert all(box and box["width"] > 200 for box in (drawn.nth(i).bounding_box() for i in range(8)))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


@pytest.mark.browser
def test_the_confusion_matrix_and_classes_are_read_from_the_page(browser, write, records, tmp_path):
    results = records.digits(1)
    path = write_page([write(results)], tmp_path / "report.html")
    page = opened(browser, path)
    found = page.locator("table.confusion").first.locator("tbody tr").all_inner_texts()
    matrix = [[int(n.replace("·", "0")) for n in line.split("\t")[1:]] for line in found]
    assert matrix == results["models"][0]["confusion"]["matrix"]
    assert page.locator("table.classes tbody tr").count() == 10
    page.close()


@pytest.mark.browser
def test_hostile_names_stay_text_in_the_page_and_its_pictures(browser, write, records, tmp_path):
    results, lines = records.digits(1), records.log(1)
    results["models"][2]["name"] = HOSTILE
    results["models"][0]["confusion"] = records.confusion(3)
    results["models"][0]["confusion"]["labels"][1] = HOSTILE
    results["steps"][0]["why"] = HOSTILE
    results["data"]["use"] = HOSTILE
    results["versions"][HOSTILE] = HOSTILE
    for line in lines:
        if line["step"] == "student":
            line["step"] = HOSTILE
            if "terms" in line:
                line["terms"] = {HOSTILE: 1.0 + line["step_number"], "kd": 2.0}
    path = write_page([write(results, lines, recipe=HOSTILE, name="a&b")], tmp_path / "report.html")
    page = opened(browser, path)
    must_be_quiet(page, path)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert HOSTILE in words(page)
    drawn = " ".join(page.locator(".chart svg.marks").all_text_contents())
    assert HOSTILE[:8] in drawn
    page.close()


@pytest.mark.browser
def test_several_runs_side_by_side(browser, write, records, tmp_path):
    folders = [
        write(records.digits(5), records.log(5), name="wide"),
        write(records.digits(1), records.log(1), name="thin"),
        write(records.regression(), records.log(1), name="houses"),
    ]
    path = write_page(folders, tmp_path / "report.html")
    page = opened(browser, path)
    must_be_quiet(page, path)
    first = page.locator("table.figures").first
    assert first.locator("tbody").count() == 3
    assert first.locator("tr.group").all_inner_texts() == ["wide", "thin", "houses"]
    for closed in page.locator("details.run:not([open]) > summary").all()[::-1]:
        closed.click()
    pictures = page.locator(".chart").count()
    page.locator(".chart svg.marks").nth(pictures - 1).wait_for()
    assert page.locator(".chart svg.marks").count() == pictures == 2 + 1 + 8 - 2 + 8 - 2 + 6
    must_be_quiet(page, path)
    page.close()


@pytest.mark.browser
def test_bare_records_give_a_quiet_page(browser, write, records, tmp_path):
    for name, results in (
        ("empty", {}),
        ("names", {"models": [{"name": "teacher"}, {"name": "student"}]}),
        ("regression", records.regression()),
        ("alone", {"models": [records.model("student", 0.9)]}),
    ):
        path = write_page([write(results, name=name, recipe="")], tmp_path / f"{name}.html")
        page = opened(browser, path, 400)
        must_be_quiet(page, path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        page.close()


@pytest.mark.browser
def test_many_classes_become_a_picture_or_a_list(browser, write, records, tmp_path):
    for classes, pictures, lists in ((30, 2, 0), (100, 0, 2)):
        results = records.digits(1)
        results["models"] = results["models"][:3:2]
        for model, wrong in zip(results["models"], (40, 60)):
            model["confusion"] = records.confusion(wrong, classes)
        path = write_page([write(results, name=str(classes))], tmp_path / f"{classes}.html")
        page = opened(browser, path)
        must_be_quiet(page, path)
        assert page.locator(".matrix .chart svg.marks, .matrix .chart canvas.marks").count() == pictures
        assert page.locator(".matrix table").count() == lists
        page.close()


def test_a_long_log_stays_small(write, records, tmp_path):
    lines = [
        {"step": f"s{seed % 4}", "seed": seed, "kind": "train", "step_number": at, "loss": 1 / at + 0.1 * (at % 7),
         "terms": {"kd": 0.123456789 * at, "cross_entropy": 1 / at}}
        for seed in range(12) for at in range(1, 4000)
    ]  # fmt: skip
    path = write_page([write(records.digits(1), lines)], tmp_path / "report.html")
    assert path.stat().st_size < MOST_BYTES
    content = re.search(r'<script type="application/json" id="charts">(.*?)</script>', path.read_text("utf-8"))
    assert content is not None
    charts = json.loads(content.group(1))
    assert all(chart["rows"] <= 500 * 12 * 3 for chart in charts)
    assert sum(chart["rows"] for chart in charts) <= 24_000 + 10


def test_the_page_names_no_other_address_and_trusts_only_its_own_scripts(write, records, tmp_path):
    text = write_page([write(records.digits(1))], tmp_path / "report.html").read_text(encoding="utf-8")
    outside = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not re.search(r"(src|href)=\"(?!#|data:)", outside)
    assert "default-src 'none'" in outside
    assert "unsafe-eval" not in text.split("</head>")[0]


def test_json_cannot_end_its_element():
    text = embedded_json(["</script><!--", "a&b"])
    assert not set("<>&") & set(text)
    assert json.loads(text) == ["</script><!--", "a&b"]


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match="at least one run"):
        write_page([], tmp_path / "report.html")


def test_results_of_a_made_run_are_valid(records):
    assert as_results(records.digits(5)).metric == "accuracy"
