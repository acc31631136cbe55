"""README and documentation: Python blocks run, recipes are valid, commands and paths are real."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from decoct.cli import app as cli
from decoct.cli.shell import in_front

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "README.zh.md",
    *(ROOT / f"{each}.md" for each in ("AGENTS", "CONTRIBUTING", "SECURITY")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
NEEDS = {"docs/in-hugging-face-trainer.md": "transformers", "docs/in-lightning.md": "lightning"}
"""Packages that a page speaks of and that need not be here."""
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands() -> list[tuple[str, str]]:
    lines = [(name(page), line) for page in PAGES for text in blocks(page, "sh") for line in text.splitlines()]
    return [(page, line.partition("  #")[0].strip()) for page, line in lines if line.strip()]


@pytest.mark.parametrize("page", [each for each in PAGES if blocks(each, "python")], ids=name)
def test_python_blocks_run(page: Path, tmp_path: Path) -> None:
    """The blocks of a page, one after the other, in a fresh process and folder."""
    if name(page) in NEEDS:
        pytest.importorskip(NEEDS[name(page)], reason=f"{name(page)} needs {NEEDS[name(page)]}")
    program = tmp_path / "blocks.py"
    program.write_text("\n\n".join(blocks(page, "python")), encoding="utf-8")
    done = subprocess.run([sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_readme_has_ten_lines_of_python() -> None:
    assert "dc.distill(" in blocks(ROOT / "README.md", "python")[0]


def test_the_chinese_quick_start_has_the_blocks_of_the_english_one() -> None:
    """Each of its blocks, byte for byte and in the order of the README, from its first section to its last."""
    sections = {"Two commands", "Ten lines of Python", "On your own data", "Asking the student", "The command"}
    parts = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## ")
    english = [block for part in parts if part.split("\n")[0] in sections for block in BLOCK.findall(part)]
    assert BLOCK.findall((ROOT / "README.zh.md").read_text(encoding="utf-8")) == english
    assert len(english) >= len(sections)


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_are_words_that_decoct_make_or_pip_know(page: str, line: str, tmp_path: Path) -> None:
    words = shlex.split(line)
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE)
    elif words[0] == "pip":
        assert words[1] == "install"
    else:
        assert words[0] == "decoct"
        known = {command.name for command in cli.app.registered_commands}
        assert any(word in known for word in words)
        assert parses(words[1:])


def parses(words: list[str]) -> bool:
    """Whether the command takes these words, without doing what they say."""
    import typer

    command = typer.main.get_command(cli.app)
    context = command.make_context("decoct", in_front(words), obj=cli.Session())
    called, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    assert inner is not None
    inner.make_context(called, list(rest), parent=context, obj=context.obj)
    return True


@pytest.mark.parametrize("page", [each for each in PAGES if blocks(each, "yaml")], ids=name)
def test_recipes_of_the_documentation_are_valid(page: Path) -> None:
    from decoct.recipe.file import read
    from decoct.recipe.recipe import Recipe

    for text in blocks(page, "yaml"):
        marked = read(text)
        if "steps" in marked.data:
            assert Recipe.from_marked(marked).yaml()


def test_the_map_of_the_readme_is_the_repository() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = readme.partition("## Map\n")[2].split("```")[1]
    inside = {word.rstrip("/") for line in found.splitlines() if line.startswith("  ") for word in line.split()}
    shown = {path.name for path in (ROOT / "src/decoct").iterdir() if not path.name.startswith(("_", "."))} - {
        "py.typed"
    }
    assert not shown - inside, "not in the map"
    own = [line for line in found.splitlines() if line.startswith("  ") and line[2:3].strip()]
    named = {line.split()[0].rstrip("/") for line in own}
    assert not {each for each in named if not (ROOT / "src/decoct" / each).exists()}, "only in the map"


def test_pages_link_to_files_that_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{name(page)}: {target}"
