"""`Recipe.run`: a recipe carried out in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from decoct.recipe.recipe import Recipe
from decoct.runner.execution import Run, execute


def run(recipe: Recipe, out: Path | str, **options: Any) -> Run:
    """Runs all steps of a recipe in the folder `out`; unchanged ones are skipped.

    Options are the fields of `decoct.runner.execution.Options`: `seeds`, `offline`, `device`, `precision` and so on.
    """
    return execute(recipe, Path(out), **options)
