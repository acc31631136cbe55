"""One step on a saved artifact, outside a recipe."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from decoct import recipe_file, run
from decoct.artifact import Artifact
from decoct.errors import RecipeError, did_you_mean
from decoct.recipe import Recipe
from decoct.steps import CATALOGUE
from decoct.steps.base import Context, Step


def apply(
    name: str,
    artifact: Path | str,
    out: Path | str,
    settings: Sequence[str] = (),
    *,
    recipe: Path | str | None = None,
    offline: bool = False,
    watch: Callable[[Mapping[str, Any]], None] = lambda event: None,
) -> Artifact:
    """Runs the step `name` of the catalogue on the artifact in a folder and writes the result to `out`.

    `settings` are the step's own, as `key=value`; `inputs.ROLE=DIR` gives further artifacts. Task and data are those
    of the run that the artifact stands in, or of `recipe`.
    """
    folder, out = Path(artifact), Path(out)
    given = Artifact.load(folder)
    if out.exists():
        raise RecipeError(f"--out {out}: exists already; give a new folder")
    step, roles = _step(name, settings)
    role = next(iter(step.roles), "model")
    taken = step.roles.get(role, ())
    if given.kind not in taken:
        raise RecipeError(
            f"{folder} is of kind {given.kind}; the {role} of {name} is {' or '.join(taken) or 'nothing'}"
        )
    inputs: dict[str, Any] = {role if role != "*" else given.name: given}
    inputs |= {other: Artifact.load(Path(place)) for other, place in roles.items()}
    origin = Recipe.load(_recipe_of(folder) if recipe is None else recipe)
    options = run.Options(offline=offline)
    data, task = run.prepare(origin, options)
    listed = {each: [value] for each, value in inputs.items()}
    key = run.key_of(step, listed, data, task, origin.seed)
    beside = out.with_name(f".{out.name}.applying")
    with run.lock(beside):
        context = Context(
            task=task,
            data=data,
            name=step.name,
            folder=out,
            work=run.work_folder(beside / "work", key),
            key=key,
            seed=run.derive(origin.seed, step.seed_name()),
            run_seed=origin.seed,
            lineage={each: [{"step": value.name, "hash": value.hash}] for each, value in inputs.items()},
            progress=lambda done, total, text: watch(
                {"event": "progress", "step": step.name, "seed": 0, "done": done, "total": total, "text": text}
            ),
        )
        made = step.run(listed if step.gives == "records" else inputs, context)
    shutil.rmtree(beside, ignore_errors=True)
    return made


def _step(name: str, settings: Sequence[str]) -> tuple[Step, dict[str, str]]:
    if name not in CATALOGUE and ":" not in name:
        raise RecipeError(f"no step {name!r}; {did_you_mean(name, CATALOGUE)}")
    marked = recipe_file.override(recipe_file.read(f"use: {name}\nname: {name}", f"apply {name}"), settings)
    fields = {key: value for key, value in marked.data.items() if key not in ("use", "inputs")}
    roles = marked.data.get("inputs") or {}
    try:
        step = CATALOGUE.resolve(name).parse(fields)
    except RecipeError as error:
        raise recipe_file.locate(error.problems, marked) from None
    assert isinstance(step, Step)
    unknown = [role for role in roles if role not in step.roles and "*" not in step.roles]
    if unknown:
        raise RecipeError(f"inputs.{unknown[0]}: {name} has no such input; {did_you_mean(unknown[0], step.roles)}")
    return step, roles


def _recipe_of(folder: Path) -> Path:
    path = folder.resolve().parent / "recipe.yaml"
    if not path.is_file():
        raise RecipeError(
            f"{folder} stands in no run's folder; name the recipe with --recipe FILE for its task and data"
        )
    return path
