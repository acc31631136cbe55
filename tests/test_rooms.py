"""The rooms: which files lie loose, that no imports go in a circle, and the one way up."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import decoct

ROOT = Path(decoct.__file__).parent
FILES = {".".join(("decoct", *path.relative_to(ROOT).with_suffix("").parts)): path for path in ROOT.rglob("*.py")}
LOOSE = {"__init__", "__main__", "artifact", "capture", "errors", "functional", "outputs", "spec"}


def imported(text: str) -> Iterator[str]:
    """Whatever a file imports, also inside functions and for type checkers alone; a package's names as its modules."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module)
            yield from (f"{node.module}.{each.name}" for each in node.names)


def circle(texts: dict[str, str]) -> list[str]:
    graph = {name: {each for each in imported(text) if each in texts and each != name} for name, text in texts.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def named(text: str) -> Iterator[str]:
    """Modules of decoct that a file imports by a name written out."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            yield from (
                each.value
                for each in node.args
                if isinstance(each, ast.Constant) and str(each.value).startswith("decoct.")
            )


def test_no_file_lies_loose_but_those_of_the_whole_house() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == LOOSE
    assert len(LOOSE) <= 12


def test_imports_go_in_no_circle_lazy_ones_and_those_of_types_counted() -> None:
    assert circle({name: path.read_text(encoding="utf-8") for name, path in FILES.items()}) == []


@pytest.mark.parametrize(
    "text", ["def f():\n    from a import b\n", "if TYPE_CHECKING:\n    import a.b\n", "from a.b import thing\n"]
)
def test_a_circle_is_seen(text: str) -> None:
    assert set(circle({"a.b": "import c\n", "c": text})) == {"a.b", "c"}


def test_the_one_way_up_is_a_recipe_that_runs() -> None:
    found = {name: list(named(path.read_text(encoding="utf-8"))) for name, path in FILES.items()}
    assert {name: each for name, each in found.items() if each} == {"decoct.recipe.recipe": ["decoct.api.recipe"]}
