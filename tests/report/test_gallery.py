"""The gallery of a page: samples on which two models differ, with nothing in them that could act."""

from pathlib import Path

import pytest

from decoct.report.colours import Colours
from decoct.report.gallery import cards, precision_recall
from decoct.report.page import write_page
from decoct.report.records import as_results

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
HOSTILE = '"><script>window.hacked = 1</script>'


def example(index, true, student, teacher, shown):
    return {
        "index": index,
        "true": true,
        "model": {"class": student, "probability": 0.9},
        "reference": {"class": teacher, "probability": 0.6},
        "shown": shown,
    }


def results(records):
    found = records.digits(1)
    found["examples"] = {
        "model": "student",
        "reference": "teacher",
        "split": "test",
        "apart": 40,
        "items": [
            example(3, "7", "1", "7", {"image": PIXEL}),
            example(4, "1", "1", "7", {"text": HOSTILE}),
            example(5, None, "2", "3", {"image": "https://example.org/track.png"}),
            example(6, "9", "2", "3", {"row": {"age": 31.0, "town": None, HOSTILE: "x"}}),
        ],
    }
    student = next(each for each in found["models"] if each["name"] == "student_int8")
    student["classes"] = [
        {"label": label, "n": 36, "precision": 0.9, "recall": 0.8, "f1": 0.85, "average_precision": area}
        | {"curve": {"recall": [0.0, 0.5, 1.0], "precision": [1.0, 0.9, 0.4]}}
        for label, area in (("0", 0.95), ("1", 0.55), (HOSTILE, 0.75))
    ]
    return found


def test_cards_tell_who_was_right_and_take_pictures_of_the_page_alone(records) -> None:
    found = cards(as_results(results(records)).examples)
    assert [each.right for each in found] == ["reference", "model", "", "neither"]
    assert [each.image for each in found] == [PIXEL, "", "", ""]
    assert found[0].model == "1 (90.0 %)"
    assert found[3].row == [("age", "31"), ("town", "missing"), (HOSTILE, "x")]


def test_the_worst_curves_are_named_first(records) -> None:
    read = as_results(results(records))
    chart = precision_recall(read.model("student_int8"), Colours.over([read], []))
    assert chart is not None
    assert chart.data["group"]["levels"] == ["1", HOSTILE, "0"]
    assert chart.rows == 9
    assert "lowest first: 1 0.550;" in chart.summary
    assert precision_recall(read.model("teacher"), Colours.over([read], [])) is None


@pytest.mark.browser
def test_the_gallery_is_shown_and_does_nothing(browser, write, records, tmp_path: Path) -> None:
    path = write_page([write(results(records), records.log(1), name="run")], tmp_path / "report.html")
    asked = []
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.locator(".gallery img").wait_for()
    assert page.locator(".gallery > li").count() == 4
    assert page.evaluate("document.querySelector('.gallery img').naturalWidth") == 1
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert HOSTILE in page.locator(".gallery").inner_text()
    assert not [url for url in asked if url.startswith("http")]
    page.close()
