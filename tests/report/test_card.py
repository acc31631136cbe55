import json
import re

import pytest

from decoct.report.card import card, fenced, md, write_card
from decoct.report.runs import read_run

HOSTILE = "<script>alert(1)</script> | `x` [a](javascript:b) *c*"


@pytest.fixture
def html():
    """Markdown as HTML, by a CommonMark parser with tables."""
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable("table").render


def test_the_card_holds_the_figures(write, records, html, tmp_path):
    folder = write(records.digits(5))
    text = write_card(folder, tmp_path / "model_card.md").read_text(encoding="utf-8")
    page = html(text)
    assert page.startswith("<h1>student_int8</h1>")
    assert "9.3 times faster" in page
    table = re.findall(r"<td[^>]*>(.*?)</td>", page)
    assert {"98.1 ± 0.4 %", "52.0 kB", "31.0 µs"} <= set(table)
    assert "0.28 points" in page
    assert "temperature: 4.0" in page


@pytest.mark.parametrize(
    "inputs", [{"image": {"shape": [None, 1, 8, 8], "dtype": "float32"}},
               [{"name": "image", "type": "uint8", "shape": ["batch", 1, 8, 8]}]]
)  # fmt: skip
def test_the_snippet_names_the_inputs(write, records, inputs):
    folder = write(records.digits(1))
    (folder / "01-student_int8").mkdir()
    (folder / "01-student_int8" / "exported.json").write_text(json.dumps({"inputs": inputs}), encoding="utf-8")
    text = card(read_run(folder))
    kind = "uint8" if isinstance(inputs, list) else "float32"
    assert f'inputs = {{"image": np.zeros((1, 1, 8, 8), np.{kind})}}' in text
    compile(text.split("```python\n")[1].split("```")[0], "snippet", "exec")


def test_the_snippet_of_a_file_in_integers_keeps_its_sums_exact(write, records):
    folder = write(records.digits(1))
    assert "x64quantprecision" not in card(read_run(folder))
    (folder / "01-student_int8").mkdir()
    (folder / "01-student_int8" / "exported.json").write_text('{"audit": {"int8": 1}}', encoding="utf-8")
    code = card(read_run(folder)).split("```python\n")[1].split("```")[0]
    assert 'options.add_session_config_entry("session.x64quantprecision", "1")' in code
    assert 'model.onnx", options)' in code
    compile(code, "snippet", "exec")


def test_lineage_comes_from_the_manifest(write, records):
    folder = write(records.digits(1))
    (folder / "01-student_int8").mkdir()
    manifest = {"key": "abc123", "lineage": {"model": "def456"}}
    (folder / "01-student_int8" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    text = card(read_run(folder))
    assert "- key: abc123" in text
    assert "- model: def456" in text


def test_hostile_names_stay_text(write, records, html):
    results = records.digits(1)
    results["models"][3]["name"] = HOSTILE
    results["data"]["use"] = HOSTILE
    folder = write(results, recipe="a: 1\n```\n<script>alert(2)</script>\n````\n")
    page = html(card(read_run(folder)))
    assert "<script" not in page
    assert 'javascript:b"' not in page
    assert "&lt;script&gt;alert(2)" in page
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.S)
    assert len({row.count("<td") for row in rows if "<td" in row and "98." in row}) == 1


def test_no_models_still_gives_a_card(write, html):
    assert "No model was evaluated" in html(card(read_run(write({}))))


def test_a_fence_is_longer_than_those_inside():
    assert fenced("````\nx").startswith("`````\n")
    assert md("a\n# b") == "a \\# b"
