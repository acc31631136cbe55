"""The page says no more than its figures carry."""

import math
import re
from itertools import pairwise

import pytest

from decoct.report.highlights import highlights
from decoct.report.page import write_page
from decoct.report.records import as_results
from decoct.report.sentence import decided, findings
from decoct.report.table import rows
from pages import must_be_quiet, opened, words


def tiles(results):
    return {each.caption: each.tone for each in highlights(as_results(results))}


def tone(results, end):
    return next(tone for caption, tone in tiles(results).items() if end in caption)


@pytest.mark.parametrize(
    ("mean", "low", "high", "n", "wanted"),
    [
        (0.012, 0.004, 0.02, 5, "better"),
        (0.012, -0.001, 0.025, 5, "open"),
        (0.012, 0.0, 0.024, 5, "open"),
        (-0.012, -0.02, -0.004, 5, "worse"),
        (0.012, None, None, 1, "open"),
    ],
)
def test_a_tile_claims_a_gain_only_where_the_sentence_does(records, mean, low, high, n, wanted):
    results = records.digits(5)
    results["comparisons"][0] |= {"mean": mean, "low": low, "high": high, "n": n}
    for model, accuracy in (("student", 0.969 + mean), ("student_alone", 0.969)):
        next(each for each in results["models"] if each["name"] == model)["quality"]["accuracy"] = accuracy
    found = findings(results)
    sentence = next(each for each in found if each.text.startswith("Taught by the teacher, the student"))
    assert sentence.tone == wanted
    assert tone(results, "than the student alone") == wanted
    turned = {"better": "worse", "worse": "better"}
    assert decided(as_results(results), "student_alone", "student") == turned.get(wanted, wanted)


def test_no_interval_stands_between_student_and_teacher_so_the_tile_stays_open(records):
    results = records.digits(5)
    assert tone(results, "than the teacher, which may be chance") == "open"
    less = {"better": "student", "than": "teacher", "metric": "accuracy", "mean": -0.004, "low": -0.006, "high": -0.002}
    results["comparisons"].append({**less, "n": 5})
    assert tone(results, "points of accuracy: worse than the teacher") == "worse"


def test_a_noisy_speed_is_rough_in_the_tile_and_in_the_sentence(records):
    results = records.digits(5)
    assert tone(results, "faster than the teacher") == "better"
    assert "answers 9.3 times faster" in findings(results)[0].text
    results["models"][2]["latency"]["noisy"] = True
    assert tone(results, "faster than the teacher, measured with noise") == "open"
    assert "answers about 9.3 times faster" in findings(results)[0].text


@pytest.mark.parametrize("change", [{"n": 100}, {"split": "validation"}])
def test_grades_on_different_samples_are_not_compared(records, change):
    results = records.digits(1)
    results["comparisons"] = []
    results["models"][2] |= change
    text = " ".join(each.text for each in findings(results))
    assert "loses" not in findings(results)[0].text
    assert "student and the teacher were graded on different samples" in text
    assert "Taught by the teacher" not in text
    assert not [caption for caption in tiles(results) if "accuracy" in caption]


def test_memory_of_different_runtimes_is_not_compared(records):
    def note(results):
        from decoct.report.table import filled

        column = next(each for each in filled([as_results(results)]) if each.title == "Memory")
        return column.cell(as_results(results).models[2]).note

    results = records.digits(1)
    results["models"][0]["peak_memory_bytes"] = 122_000_000
    assert note(results) == "2.0× less"
    results["models"][0]["latency"]["runtime"] = "torch"
    assert note(results) == ""


def test_not_all_is_never_written_as_all(records):
    results = records.digits(1)
    results["models"][2]["fidelity"]["agreement"] = 1796 / 1797
    results["models"][2]["quality"]["accuracy"] = 0.99996
    assert rows(results)[2]["Accuracy"] == "99.996 %"
    assert any(
        "answer on 99.94 %" in text or "answer on 99.9 %" in text for text in (e.text for e in findings(results))
    )


@pytest.mark.browser
def test_a_model_has_one_colour_in_all_pictures(browser, write, records, tmp_path):
    """Colours are read from what is drawn: marks of the front, lines of validation and learning rate, both schemes."""
    for name, order in (("as", [0, 1, 2, 3]), ("turned", [3, 2, 1, 0])):
        results = records.digits(5)
        results["models"] = [results["models"][place] for place in order]
        folders = [write(results, records.log(5), name=name)]
        for scheme in ("light", "dark"):
            found = colours(browser, write_page(folders, tmp_path / f"{name}.html"), scheme)
            assert {"teacher", "student", "student_alone"} <= set(found)
            assert {name: len(each) for name, each in found.items()} == dict.fromkeys(found, 1)
            models = [next(iter(found[each])) for each in ("teacher", "student", "student_alone", "student_int8")]
            assert len(set(models)) == 4


@pytest.mark.browser
def test_a_model_has_one_colour_over_several_runs(browser, write, records, tmp_path):
    one = records.digits(1)
    two = {**records.digits(1), "models": records.digits(1)["models"][::-1]}
    folders = [write(one, records.log(1), name="one"), write(two, records.log(1), name="two")]
    found = colours(browser, write_page(folders, tmp_path / "both.html"), "light")
    assert {name: len(each) for name, each in found.items()} == dict.fromkeys(found, 1)


def colours(browser, path, scheme):
    """By name of model or step, all colours in which the pictures draw it."""
    page = opened(browser, path, scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    page.wait_for_timeout(300)
    found = page.evaluate(
        """() => {
          const found = {};
          const add = (name, colour) => (found[name] = found[name] || []).push(colour);
          for (const chart of document.querySelectorAll(".chart")) {
            if (!chart.view) continue;
            const title = chart.closest("figure")?.querySelector("figcaption").innerText || "";
            if (title.startsWith("Loss of") || title.startsWith("Weights of")) continue;
            const scale = chart.view.scale("color");
            if (scale) for (const name of scale.domain()) add(name, scale(name));
          }
          return found;
        }"""
    )
    page.close()
    assert sum(map(len, found.values())) > len(found)
    return {name: set(each) for name, each in found.items()}


@pytest.mark.browser
def test_the_shade_of_a_mistake_grows_up_to_the_last_share(browser, write, records, tmp_path):
    results = records.digits(1)
    matrix = [[0] * 10 for _ in range(10)]
    for i in range(10):
        matrix[i][i], matrix[i][(i + 1) % 10] = 100 - 10 * i, 10 * i
    for model in results["models"]:
        model["confusion"] = {"labels": [str(i) for i in range(10)], "matrix": matrix}
    page = opened(browser, write_page([write(results)], tmp_path / "report.html"))
    script = "(cells) => cells.map((cell) => [cell.innerText, getComputedStyle(cell).backgroundColor])"
    cells = page.locator("table.confusion").first.locator("td.wrong").evaluate_all(script)
    shown = {}
    for text, colour in cells:
        numbers = [float(each) for each in re.findall(r"[\d.]+", colour)]
        shown[int(text.replace("·", "0"))] = numbers[3] if len(numbers) > 3 else 1.0
    page.close()
    alphas = [shown[share] for share in range(0, 100, 10)]
    assert alphas == sorted(alphas)
    assert all(b - a > 0.02 for a, b in pairwise(alphas))
    for share, alpha in shown.items():  # the root of the share, as the page says
        assert math.isclose(alpha, 0.55 * math.sqrt(share / 100), abs_tol=0.01)


@pytest.mark.browser
@pytest.mark.parametrize("width", [1400, 400])
def test_a_short_run_draws_no_empty_picture(browser, write, records, tmp_path, width):
    """Every picture holds a line or a mark that is seen."""
    results = records.digits(1)
    lines = records.log(1, steps=10)
    extra = [line for line in records.log(1, steps=60) if line["step"] == "student" or line["step_number"] == 20]
    path = write_page([write(results, lines + extra)], tmp_path / "report.html")
    page = opened(browser, path, width)
    must_be_quiet(page, path)
    script = """(charts) => charts.map((chart) => {
      const marks = [...chart.querySelectorAll("g.mark-line path, g.mark-symbol path, g.mark-rect path")];
      return marks.filter((mark) => mark.closest(".role-mark") && getComputedStyle(mark).opacity > 0
        && mark.getBBox().width + mark.getBBox().height > 0).length;
    })"""
    counts = page.locator(".chart").evaluate_all(script)
    assert counts
    assert all(counts), counts
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize("width", [1400, 400])
def test_a_run_that_failed_says_so_first(browser, write, records, tmp_path, width):
    results = records.digits(1)
    results["models"], results["comparisons"] = results["models"][:1], []
    message = "student_int8: 60,000 bytes, max_size_bytes is 50,000"
    results["failed"] = {"step": "student_int8", "type": "BudgetMissed", "message": message, "exit_code": 5}
    results["steps"][-1] |= {"name": "student_int8", "state": "failed", "why": message, "skipped": False}
    path = write_page([write(results, records.log(1))], tmp_path / "report.html")
    page = opened(browser, path, width)
    must_be_quiet(page, path)
    first = page.locator("p.lead.failed").inner_text().replace("\N{NO-BREAK SPACE}", " ")
    assert first.startswith(f"This run failed at the step student_int8 (exit code 5): {message}.")
    assert page.locator(".highlights li").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert "failed" in words(page)
    page.close()
