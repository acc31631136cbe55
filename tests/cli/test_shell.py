"""What the command does before its work begins, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from decoct.recipe.recipe import Recipe
from tiny import PAIR, recipe

IMPORTED = """
import gc, sys
from decoct.cli.shell import importing
with importing():
    assert not gc.isenabled()
    import torch
assert gc.isenabled()
assert gc.get_freeze_count() > 100_000
frozen = gc.get_freeze_count()
with importing():
    assert gc.isenabled()
assert gc.get_freeze_count() <= frozen
"""
FAILED = """
import gc
from decoct.cli.shell import importing
try:
    with importing():
        raise ImportError
except ImportError:
    assert gc.isenabled()
"""
PLANNED = """
import sys
from decoct.cli.app import call
assert call(["plan", sys.argv[1], "--quiet"]) == 0
print(*(name for name in sys.modules if name.startswith("decoct.")))
"""
UNNEEDED = ("pruning", "quantization", "rewriting", "sharing", "targets", "meters", "steps.shipping", "report.page")


def said(code: str, *words: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_garbage_is_looked_for_again_after_the_imports() -> None:
    said(IMPORTED)
    said(FAILED)


def test_a_plan_imports_nothing_of_steps_that_its_recipe_has_not(tmp_path: Path) -> None:
    made: Recipe = recipe(PAIR)
    (tmp_path / "recipe.yaml").write_text(made.yaml())
    names = said(PLANNED, str(tmp_path / "recipe.yaml")).split()
    assert "decoct.steps.distill" in names
    assert [each for each in names if each.removeprefix("decoct.").startswith(UNNEEDED)] == []
