"""The rooms: which files lie loose, that no imports go in a circle, and the one way up."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import decoct

ROOT = Path(decoct.__file__).parent
FILES = {".".join(("decoct", *path.relative_to(ROOT).with_suffix("").parts)): path for path in ROOT.rglob("*.py")}
LOOSE = {
    "__init__",
    "__main__",
    "artifact",
    "capture",
    "errors",
    "functional",
    "memory",
    "network",
    "outputs",
    "spec",
    "threads",
}


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


ASKS_THE_TASK = re.compile(r"isinstance\(.*task|task\.output ==|metric\[1\]")
"""A line that may ask which task it is; what a task is like is asked of its Inputs and Answer."""
ASKING = {
    ("api/arguments.py", "if isinstance(task, str):"): "a task by its name",
    ("steps/compressing/recovery/layer_by_layer.py", "select = (CHOSEN, task.metric[1])"): "the better direction",
    ("steps/learning/lesson.py", "select = (CHOSEN, context.task.metric[1])"): "the better direction",
    (
        "steps/learning/teachers.py",
        'elif isinstance(value, Artifact) and (value.folder / "task.json").is_file():',
    ): "whether the artifact says its task",
}
"""The lines outside `tasks` that look so, and why each may."""


def asking(texts: dict[str, str]) -> set[tuple[str, str]]:
    """(file, line) of all lines that look as if they asked which task it is."""
    return {
        (name, line.strip()) for name, text in texts.items() for line in text.splitlines() if ASKS_THE_TASK.search(line)
    }


def test_nobody_outside_tasks_asks_which_task_it_is() -> None:
    files = {path.relative_to(ROOT).as_posix(): path for path in FILES.values()}
    texts = {name: path.read_text(encoding="utf-8") for name, path in files.items() if not name.startswith("tasks/")}
    assert asking(texts) == set(ASKING)


@pytest.mark.parametrize(
    "line", ["if isinstance(context.task, Regression):", 'if task.output == "values":', 'if task.metric[1] == "min":']
)
def test_a_question_is_seen(line: str) -> None:
    assert asking({"steps/new.py": f"def f():\n    {line}\n"}) == {("steps/new.py", line)}


TASKS = {"Regression", "ImageClassification", "TabularClassification", "TextClassification"}


def test_no_task_is_imported_outside_tasks_by_name() -> None:
    """But to be offered to users."""
    found = {
        (name, each.rpartition(".")[2])
        for name, path in FILES.items()
        if not name.startswith("decoct.tasks")
        for each in imported(path.read_text(encoding="utf-8"))
        if each.rpartition(".")[2] in TASKS
    }
    assert found <= {("decoct.__init__", each) for each in TASKS}, found
