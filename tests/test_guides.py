"""Pages for users: figures are those of the committed files, lists are whole, commands are understood."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from decoct.cli import app as cli

ROOT = Path(__file__).parents[1]
QUESTIONS = ROOT / "docs/questions.md"
GALLERY = ROOT / "docs/gallery.md"
RECIPES = {path.stem: path for path in (ROOT / "recipes").rglob("*.yaml")}
FILES = re.compile(r"`((?:benchmarks/results|docs)/\w+\.md)`")
NUMBER = re.compile(r"(?<![\w.])[+-]?\d[\d,]*(?:\.\d+)?(?:e-\d+)?")
NO_FIGURES = re.compile(
    r"at temperature \d|4 bits|8 bits|int8|uint8|float32|\d seeds?\b|\d likeliest|\d of them|ResNet-\d+|by \d\d %"
)


def questions() -> dict[str, str]:
    text = QUESTIONS.read_text(encoding="utf-8")
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in re.split(r"^### ", text, flags=re.M)[1:]}


def figure_of(answer: str) -> str:
    return answer.partition("\nFigure: ")[2].split("\n\n")[0]


def stated(figure: str) -> list[str]:
    """The measured numbers of a figure's sentence: what a file is called and what was set are none."""
    return NUMBER.findall(NO_FIGURES.sub(" ", FILES.sub(" ", re.sub(r"`[^`]*`", " ", figure))))


def missing(numbers: list[str], text: str) -> list[str]:
    plain = text.replace("−", "-")
    return [each for each in numbers if not re.search(rf"(?<![\d.]){re.escape(each)}(?!\d|\.\d)", plain)]


def commands(text: str) -> list[str]:
    return [line for block in re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S) for line in block.splitlines()]


def test_a_number_that_is_not_in_the_file_is_found() -> None:
    assert missing(["+0.73", "80.24"], "| +0.73 (+0.38 | 80.24 ± 0.89 |") == []
    assert missing(["0.7", "80.2"], "| +0.73 (+0.38 | 80.24 ± 0.89 |") == ["0.7", "80.2"]
    assert stated("`kd` at temperature 1 gives 80.24 %, -0.18 (5 seeds, `benchmarks/results/tails.md`)") == [
        "80.24",
        "-0.18",
    ]


def test_there_are_forty_questions_each_with_a_command() -> None:
    found = questions()
    assert len(found) == 40
    assert all(title.endswith("?") for title in found)
    assert {title: len(commands(answer)) for title, answer in found.items()} == dict.fromkeys(found, 1)


@pytest.mark.parametrize("title", questions())
def test_figures_stand_in_the_files_that_are_named(title: str) -> None:
    figure = figure_of(questions()[title])
    files = FILES.findall(figure)
    if not files:
        assert figure.startswith("none is committed")
        return
    numbers = stated(figure)
    assert numbers
    texts = "\n".join((ROOT / each).read_text(encoding="utf-8") for each in files)
    assert not missing(numbers, texts), f"{title}: not in {', '.join(files)}"


@pytest.mark.parametrize("page", [QUESTIONS, GALLERY], ids=lambda page: page.stem)
def test_recipes_of_the_pages_ship(page: Path) -> None:
    words = [shlex.split(line) for line in commands(page.read_text(encoding="utf-8"))]
    runs = [each for each in words if each[:2] == ["decoct", "run"]]
    assert runs
    assert {each[2] for each in runs} <= set(RECIPES)
    assert all("--out" in each for each in runs)


def test_overrides_of_the_questions_name_settings_that_recipes_have() -> None:
    from decoct.recipe.file import read
    from decoct.recipe.recipe import Recipe

    for line in commands(QUESTIONS.read_text(encoding="utf-8")):
        words = shlex.split(line)
        settings = [each for each in words[3:] if re.match(r"[\w.]+=", each) and "DIR" not in each]
        if words[1] == "run" and settings:
            marked = read(RECIPES[words[2]].read_text(encoding="utf-8"))
            assert Recipe.from_marked(marked, settings).yaml(), line


@pytest.mark.parametrize(
    "key",
    sorted({shlex.split(line)[2] for line in commands(QUESTIONS.read_text()) if line.startswith("decoct explain")}),
)
def test_what_the_questions_explain_is_explained(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["explain", key]) == 0
    assert key.rpartition(".")[2] in capsys.readouterr().out


def gallery() -> dict[str, str]:
    lines = GALLERY.read_text(encoding="utf-8").splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("| `")]
    return {re.findall(r"`(\w+)`", cells[0])[0]: "|".join(cells[1:]) for cells in rows}


def test_the_gallery_shows_every_recipe_that_ships() -> None:
    assert set(gallery()) == set(RECIPES)
    runs = [shlex.split(line) for line in commands(GALLERY.read_text(encoding="utf-8"))]
    assert sorted(each[2] for each in runs) == sorted(RECIPES)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_figures_of_the_gallery_stand_in_the_files_that_are_named(recipe: str) -> None:
    what, _, figure = gallery()[recipe].partition("|")
    assert what.strip()
    files = FILES.findall(figure)
    if not files:
        assert "none committed" in figure
        return
    texts = "\n".join((ROOT / each).read_text(encoding="utf-8") for each in files)
    numbers = stated(figure)
    assert numbers
    assert not missing(numbers, texts)


def test_the_notebook_was_executed_and_its_page_is_the_notebook() -> None:
    """The cells run as plain Python too: the blocks of the page are run by tests/test_docs.py."""
    path = ROOT / "docs/notebooks/digits.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    page = path.with_suffix(".md").read_text(encoding="utf-8")
    code = [each for each in cells if each["cell_type"] == "code"]
    assert ["".join(each["source"]) + "\n" for each in code] == re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    assert [each["execution_count"] for each in code] == list(range(1, len(code) + 1))
    outputs = [each for cell in code for each in cell["outputs"]]
    assert {each["output_type"] for each in outputs} == {"stream", "execute_result"}
    for each in outputs:
        shown = "".join(each["text"] if each["output_type"] == "stream" else each["data"]["text/html"])
        assert shown.strip() in page
    assert path.stat().st_size < 60_000
    assert not re.search(r"/(?:home|root|tmp|work)/", path.read_text(encoding="utf-8"))
