"""What a notebook shows of a run: whole, well-formed, and nothing in it is markup that a name brought."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from decoct.report.inline import grid, lines, run_html, scores_html
from decoct.report.table import rows

NUMBERS = st.floats(-1e6, 1e6)


def parsed(html: str) -> ET.Element:
    return ET.fromstring(html)


def test_the_table_is_that_of_the_terminal_and_the_picture_has_each_model(records):
    results = records.digits(5)
    root = parsed(run_html(results))
    found = [["".join(cell.itertext()) for cell in row] for row in root.iter("tr")]
    brief = rows(results, brief=True)
    assert found == [list(brief[0]), *(list(row.values()) for row in brief)]
    svg = "{http://www.w3.org/2000/svg}"
    titles = [each.text for each in root.iter(f"{svg}title")]
    assert [each.partition(":")[0] for each in titles] == [model["name"] for model in results["models"]]
    assert "98.1 %, 31.0 µs" in titles[2]


def test_better_is_higher_and_slower_is_further_right(records):
    results = records.digits(1)
    svg = "{http://www.w3.org/2000/svg}"
    circles = list(parsed(run_html(results)).iter(f"{svg}circle"))
    places = [(float(each.attrib["cx"]), float(each.attrib["cy"])) for each in circles]
    cost = [model["latency"]["p50_ms"] for model in results["models"]]
    quality = [model["quality"]["accuracy"] for model in results["models"]]
    assert sorted(range(4), key=lambda i: places[i][0]) == sorted(range(4), key=lambda i: cost[i])
    assert max(range(4), key=lambda i: quality[i]) == min(range(4), key=lambda i: places[i][1])


def test_names_are_text_and_never_markup(records):
    results = records.digits(1)
    results["models"][2]["name"] = "<script>alert(1)</script>"
    html = run_html(results)
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "<b>" not in scores_html({"<b>": {"accuracy": 0.5}}, {"<b>": [(0, 1.0), (1, 2.0)]})


def test_a_run_that_measured_nothing_shows_validation_scores():
    html = run_html({"models": []}, {"02-student": {"accuracy": 0.9123}})
    assert "91.2 %" in html
    assert "02-student" in html
    assert run_html({"models": []}) == "<div><p>no model was scored</p></div>"


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=1000))
def test_curves_stay_inside_of_the_picture(points):
    svg = parsed(lines({"loss": points}, "loss"))
    places = svg.find("{http://www.w3.org/2000/svg}polyline").attrib["points"].split()
    assert 1 <= len(places) <= 400
    xy = [tuple(map(float, each.split(","))) for each in places]
    assert all(39.9 <= x <= 380.1 and 39.9 <= y <= 180.1 for x, y in xy)


@given(
    st.lists(
        st.dictionaries(st.just("Model"), st.text(st.characters(min_codepoint=32, max_codepoint=0xD7FF)), min_size=1),
        min_size=1,
    )
)
def test_cells_come_back_as_they_were(shown):
    cells = [cell.text or "" for cell in parsed(grid(shown)).iter("td")]
    assert cells == [row["Model"] for row in shown]
