"""One step on a saved artifact, outside a recipe."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decoct.artifact import Artifact, unless_full
from decoct.errors import BudgetMissed, DataError, RecipeError, did_you_mean
from decoct.models.saving import WEIGHTS
from decoct.recipe import file as recipe_file
from decoct.recipe.recipe import Recipe
from decoct.runner import execution
from decoct.runner.folders import lock, refuse_file, remove_held, work_folder
from decoct.runner.keys import derive, key_of
from decoct.steps import CATALOGUE
from decoct.steps.base import Context, Step
from decoct.steps.labelling.step import Label
from decoct.steps.learning.sources import read_by
from decoct.steps.ordering import order_problem
from decoct.steps.records import EXPORTED, REPORT, Exported, Report
from decoct.steps.shipping.quantize import SPLITS
from decoct.training.engine import found_device

if TYPE_CHECKING:
    from decoct.data.base import Dataset
    from decoct.tasks.base import Task

SCHEMES = {"prune": ("decoct.pruning", "channels"), "quantize": ("decoct.quantization", "static")}
"""Steps whose scheme may be left out: where its kinds are, and the one that is taken."""
CONTINUED = ("label",)
"""Steps that complete or repair what stands in their folder, and refuse what is another's."""


def apply(
    name: str,
    artifact: Path | str,
    out: Path | str,
    settings: Sequence[str] = (),
    *,
    recipe: Path | str | None = None,
    calibration: str | None = None,
    offline: bool = False,
    device: str | None = None,
    watch: Callable[[Mapping[str, Any]], None] = lambda event: None,
) -> Artifact:
    """Runs the step `name` of the catalogue on the artifact in a folder and writes the result to `out`.

    `settings` are the step's own, as `key=value`, and those of its scheme (`ratio=0.5` of prune); `inputs.ROLE=DIR`
    gives further artifacts. Task and data are those of the run that the artifact stands in, or of `recipe`.
    `calibration`: of quantize, the split (train or validation) or a folder of data to calibrate on. `device`: the
    recipe's by default.
    """
    folder, out = Path(artifact), Path(out)
    given = Artifact.load(folder)
    if out.exists() and name not in CONTINUED:
        raise RecipeError(f"--out {out}: exists already; give a new folder")
    source = None
    if calibration is not None:
        settings, source = _calibrating(name, settings, calibration)
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
    options = execution.Options(offline=offline)
    data, task = execution.prepare(origin, options)
    if source is not None:
        data = _calibrated_by(origin, data, source, offline)
    _in_order(step, inputs.get("model"))
    sources = execution.prepare_sources(origin, options) if read_by(step) else {}
    where = device or origin.device
    found_device(where)
    return alone(step, inputs, out, data, task, origin.seed, watch=watch, sources=sources, device=where)


def alone(
    step: Step,
    inputs: Mapping[str, Any],
    out: Path,
    data: Dataset,
    task: Task,
    seed: int,
    *,
    given: Mapping[str, Any] | None = None,
    watch: Callable[[Mapping[str, Any]], None] = lambda event: None,
    sources: Mapping[str, Dataset] | None = None,
    device: str = "auto",
) -> Artifact:
    """Runs one step by itself, its artifact in `out`; the same call goes on with what a killed one began.

    `inputs` are Artifacts and Model Specs by role, `sources` what its objective reads beside the data. RecipeError for
    a setting, and a budget that is missed, remove the checkpoints too; after any other error the same call goes on from
    them.
    """
    refuse_file(out)
    listed = {each: [value] for each, value in inputs.items()}
    key = key_of(step, listed, data, task, seed, sources=sources)
    beside = out.with_name(f".{out.name}.applying")
    with unless_full(out), lock(beside), _removed_when_refused(beside):
        context = Context(
            task=task,
            data=data,
            name=step.name,
            folder=out,
            work=work_folder(beside / "work", key),
            key=key,
            seed=derive(seed, step.seed_name()),
            run_seed=seed,
            lineage={each: [_lineage(value)] for each, value in inputs.items()},
            given=given or {},
            sources=sources or {},
            device=device,
            progress=lambda done, total, text: watch(
                {"event": "progress", "step": step.name, "seed": 0, "done": done, "total": total, "text": text}
            ),
        )
        if isinstance(step, Label):
            step.refuse_another(inputs, context)
        made = context.carry_out(step, listed if step.gives == "records" else inputs)
        remove_held(beside)
    return made


def _lineage(value: Any) -> dict[str, str]:
    if isinstance(value, Artifact):
        return {"step": value.name, "hash": value.hash}
    return {"model": value.use, "digest": value.digest()}


@contextlib.contextmanager
def _removed_when_refused(beside: Path) -> Iterator[None]:
    """Removes the folder of checkpoints where the settings are refused: with others it is another step.

    A full disk, damage or an interruption leaves it, and the step goes on from there.
    """
    try:
        yield
    except (RecipeError, BudgetMissed):
        remove_held(beside)
        raise


def _in_order(step: Step, source: Any) -> None:
    """RecipeError where a recipe would refuse the step after what made the artifact, as its report says."""
    if not isinstance(source, Artifact) or not (source.folder / REPORT).is_file():
        return
    record = source.json(REPORT, Report)
    if record.get("step") not in CATALOGUE:  # of an older version
        return
    fields = {"name": source.name, "scheme": record["scheme"], "recover": record["recover"]}
    try:
        made_by = CATALOGUE.resolve(record["step"]).parse(fields)
    except RecipeError:  # a plugin that is not allowed here, or settings of another version
        return
    assert isinstance(made_by, Step)
    problem = order_problem(step, made_by)
    if problem:
        raise RecipeError(f"{source.folder}: {problem}")


def changed(made: Artifact, given: Path | str) -> list[dict[str, Any]]:
    """What a step changed, for a table: parameters, MACs and bytes before and after; empty where nothing is known."""
    before, after = _facts(Artifact.load(given, verify=False)), _facts(made)
    report = made.folder / REPORT
    if report.is_file():
        record = made.json(REPORT, Report)
        before, after = before | record["before"], after | record["after"]
    rows = []
    for what in ("parameters", "nonzero", "macs", "bytes"):
        old, new = before.get(what), after.get(what)
        if old is not None and new is not None:
            ratio = f"{old / new:.2f}x smaller" if new else ""
            rows.append({"": what, "before": f"{old:,}", "after": f"{new:,}", "ratio": ratio})
    return rows


def _facts(artifact: Artifact) -> dict[str, Any]:
    """Parameters and MACs where the artifact names them, and the bytes of what it ships or of its weights."""
    if (artifact.folder / EXPORTED).is_file():
        record = artifact.json(EXPORTED, Exported)
        return {each: record.get(each) for each in ("parameters", "macs")} | {"bytes": record["file_bytes"]}
    weights = artifact.folder / WEIGHTS
    return {"bytes": weights.stat().st_size} if weights.is_file() else {}


def _calibrating(name: str, settings: Sequence[str], calibration: str) -> tuple[list[str], Path | None]:
    """The step's settings with its calibration split, and the folder of data where one is named."""
    if "calibration_split" not in (CATALOGUE.resolve(name).model_fields if name in CATALOGUE else {}):
        raise RecipeError(f"--calibration {calibration}: {name} does not calibrate; leave it out")
    if Path(calibration).is_dir():
        return [*settings, "calibration_split=train"], Path(calibration)
    if calibration not in SPLITS:
        raise RecipeError(
            f"--calibration {calibration}: no folder and no split; {did_you_mean(calibration, SPLITS)}, "
            "or the folder of data in the recipe's own layout (never test data)"
        )
    return [*settings, f"calibration_split={calibration}"], None


def _calibrated_by(origin: Recipe, data: Dataset, folder: Path, offline: bool) -> Dataset:
    """The data with the training split of another folder, read as the recipe's data are."""
    if not any(each.is_file() for each in folder.rglob("*")):
        raise DataError(f"--calibration {folder}: the folder holds no file; give data, or one of {', '.join(SPLITS)}")
    if not origin.data.reads_files:
        raise DataError(
            f"--calibration {folder}: {origin.data.use} has no files, so that no folder of them can be read; calibrate "
            f"on one of its splits ({', '.join(SPLITS)})"
        )
    other = origin.data.replace(path=folder).open(offline=offline)
    own = origin.data.path
    if other.fingerprint == data.fingerprint and (own is None or folder.resolve() != own.resolve()):
        raise DataError(
            f"--calibration {folder}: read as {origin.data.use}, this gives the recipe's own data; calibrate on one "
            f"of their splits ({', '.join(SPLITS)}), or name a folder of other data of that kind"
        )
    if other.classes != data.classes:
        raise DataError(f"--calibration {folder}: its classes are not those of the recipe's data; give like data")
    fingerprint = hashlib.sha256(f"{data.fingerprint} {other.fingerprint}".encode()).hexdigest()
    return replace(data, splits={**data.splits, "train": other.splits["train"]}, fingerprint=fingerprint)


def _step(name: str, settings: Sequence[str]) -> tuple[Step, dict[str, str]]:
    if name not in CATALOGUE and ":" not in name:
        raise RecipeError(f"no step {name!r}; {did_you_mean(name, CATALOGUE)}")
    begin, settings = _with_scheme(name, settings)
    marked = recipe_file.override(recipe_file.read(begin, f"apply {name}"), settings)
    fields = {key: value for key, value in marked.data.items() if key not in ("use", "inputs")}
    roles = marked.data.get("inputs") or {}
    try:
        step = CATALOGUE.resolve(name).parse(fields)
    except RecipeError as error:
        raise recipe_file.locate(error.problems, marked) from None
    assert isinstance(step, Step)
    known = {**step.roles, **step.optional}
    unknown = [role for role in roles if role not in known and "*" not in known]
    if unknown:
        raise RecipeError(f"inputs.{unknown[0]}: {name} has no such input; {did_you_mean(unknown[0], known)}")
    return step, roles


def _with_scheme(name: str, settings: Sequence[str]) -> tuple[str, list[str]]:
    """The step's text to begin with, and its settings: those of its scheme may be written without `scheme.`."""
    begin, settings = f"use: {name}\nname: {name}", list(settings)
    if name not in SCHEMES or any(each.startswith("scheme=") for each in settings):
        return begin, settings
    package, use = SCHEMES[name]
    use = next((each.partition("=")[2] for each in settings if each.startswith("scheme.use=")), use)
    known = importlib.import_module(package).CATALOGUE
    fields = known.resolve(use).model_fields if use in known else {}
    own = CATALOGUE.resolve(name).model_fields
    short = [each.partition("=")[0].partition(".")[0] for each in settings]
    settings = [f"scheme.{each}" if key in fields and key not in own else each for key, each in zip(short, settings)]
    if own["scheme"].is_required() or any(each.startswith("scheme.") for each in settings):
        begin += f"\nscheme: {{use: {use}}}"
    return begin, settings


def _recipe_of(folder: Path) -> Path:
    path = folder.resolve().parent / "recipe.yaml"
    if not path.is_file():
        raise RecipeError(
            f"{folder} stands in no run's folder; name the recipe with --recipe FILE for its task and data"
        )
    return path
