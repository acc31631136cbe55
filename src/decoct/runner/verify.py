"""Whether the files of a run are as they were written, and exported files still say what their models say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decoct.artifact import MANIFEST, Artifact, damaged, described_by, read_json, read_manifest, understood
from decoct.errors import DataError, DecoctError, IntegrityError
from decoct.recipe import file as recipe_file
from decoct.recipe.graph import folder_name

if TYPE_CHECKING:
    from torch import nn

    from decoct.recipe.recipe import Recipe
    from decoct.steps.shipping.parity import Parity
    from decoct.tasks.base import Task

RECIPE, RESULTS = "recipe.yaml", "results.json"
STEP_FOLDER = re.compile(r"\d\d+-[^/\\]+$")
KEYS = ("decoct", "recipe", "seed", "seeds", "task", "data", "models", "comparisons", "steps", "versions")
"""What results.json always holds."""
SLACK = 1.5
"""How much further from its model than recorded a quantized file may be."""


@dataclass(frozen=True)
class Verified:
    """One artifact: its folder, how many files it has, what is wrong, and how an exported file compares."""

    artifact: str
    files: int
    wrong: tuple[str, ...] = ()
    parity: str = ""


def verify_run(folder: Path | str, *, offline: bool = False) -> list[Verified]:
    """Compares every file of a run, or of one artifact, with its checksum, and exported files with their models.

    Of a run every step that its recipe.yaml and results.json name must be there. What belongs to the run as a whole
    (results.json, recipe.yaml) is said under its folder.
    A comparison that cannot be made (data absent, a model from Python) is said in `parity`, not counted as wrong.
    DataError if there is nothing to verify.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder of a run or of one artifact")
    if (folder / MANIFEST).exists() or _in_run(folder):
        return [_verified(folder, offline)]
    found = {path.parent.name for path in folder.glob(f"*/{MANIFEST}") if not path.parent.name.startswith(".")}
    wrong: list[str] = []
    if (folder / RECIPE).exists() or (folder / RESULTS).exists():
        found |= {path.name for path in folder.iterdir() if path.is_dir() and STEP_FOLDER.match(path.name)}
        found |= _named(folder, wrong)
    if not found and not wrong:
        raise DataError(f"{folder}: holds no artifact; give the folder of a run or of one artifact")
    whole = [Verified(str(folder), 0, tuple(wrong))] if wrong else []
    return whole + [_verified(folder / each, offline) for each in sorted(found)]


def _in_run(folder: Path) -> bool:
    return bool(STEP_FOLDER.match(folder.resolve().name)) and (folder.resolve().parent / RECIPE).is_file()


def _named(run: Path, wrong: list[str]) -> set[str]:
    """The folders of the steps that recipe.yaml and results.json name; adds to `wrong` what is wrong with these."""
    folders: set[str] = set()
    names: list[str] = []
    try:
        steps = recipe_file.read((run / RECIPE).read_text("utf-8"), RECIPE).data["steps"]
        names = [str(step.get("name") or step["use"]) for step in steps]
        folders |= {folder_name(number, name) for number, name in enumerate(names)}
    except FileNotFoundError:
        wrong.append(f"{RECIPE} is missing; decoct run writes it again")
    except (KeyError, TypeError, ValueError, AttributeError, DecoctError):
        wrong.append(f"{RECIPE} is damaged: no recipe with steps; decoct run writes it again")
    try:
        results = read_json(run / RESULTS, dict[str, Any])
        gone = [key for key in KEYS if key not in results]
        if gone:
            wrong.append(f"{RESULTS} is damaged: it has no {', '.join(gone)}; decoct run writes it again")
            return folders
        folders |= {each["path"] for each in results["models"] if STEP_FOLDER.match(each.get("path") or "")}
        for each in results["steps"]:
            if names and each["name"] not in names:
                wrong.append(f"{RESULTS} has a step {each['name']!r}, {RECIPE} has not; decoct run makes both agree")
            elif names:
                seed = None if each["seed"] == results["seed"] else each["seed"]
                folders.add(folder_name(names.index(each["name"]), each["name"], seed))
    except FileNotFoundError:
        wrong.append(f"{RESULTS} is missing: the run did not end, or the file was removed; decoct run writes it")
    except (IntegrityError, ValueError, KeyError, TypeError, AttributeError):
        wrong.append(f"{RESULTS} is damaged: it is not what a run writes; decoct run writes it again")
    return folders


def _verified(folder: Path, offline: bool) -> Verified:
    try:
        manifest = read_manifest(folder)
        wrong = tuple(damaged(folder))
    except IntegrityError as error:
        return Verified(str(folder), 0, (str(error),))
    files = len(manifest["files"])
    if wrong or manifest["kind"] != "exported":
        return Verified(str(folder), files, wrong)
    try:
        return Verified(str(folder), files, parity=_parity(Artifact.load(folder, verify=False), offline))
    except IntegrityError as error:
        return Verified(str(folder), files, (str(error),))
    except DecoctError as error:
        return Verified(str(folder), files, parity=f"not compared with its model: {error}")


def _parity(exported: Artifact, offline: bool) -> str:
    """Runs file and model on the same real samples once more; IntegrityError where they differ."""
    from decoct.recipe.recipe import Recipe
    from decoct.runner import execution
    from decoct.steps.base import Context
    from decoct.steps.shipping import export
    from decoct.steps.shipping.parity import compare
    from decoct.steps.shipping.record import RECORD, Exported
    from decoct.targets.base import Target

    record = exported.json(RECORD, Exported)
    source = _source(exported)
    if source.kind == "estimator":
        return "is the estimator's own file"
    recipe = Recipe.load(exported.folder.parent / "recipe.yaml")
    data, task = execution.prepare(recipe, execution.Options(offline=offline))
    count, tolerance = _settings(recipe, exported.name)
    target = described_by("decoct.targets", record["target"], exported.folder / RECORD)
    assert isinstance(target, Target)
    context = Context(task, data, exported.name, exported.folder, exported.folder, seed=0)
    program = _program(source, task, record["side"])
    session = target.load(exported.file(record["file"]))
    reading = task.reading(record["side"])
    feeds = [reading.feed(batch) for batch in export.verification(context, count)]
    found = compare(program, session, feeds, reading.outputs)
    with understood(exported.folder / RECORD):
        worst, mean = _allowed(record, found, tolerance)
    if not (found.max_abs_diff <= worst and found.mean <= mean):
        raise IntegrityError(
            f"{record['file']} differs from its model by {found.max_abs_diff:.2g}, on average {found.mean:.2g}; "
            f"tolerance is {worst:g}, on average {mean:g}"
        )
    return f"says what its model says, within {found.max_abs_diff:.1e} on {found.samples} samples"


def _source(exported: Artifact) -> Artifact:
    """The artifact that was exported, by its hash among the neighbours."""
    wanted = {each.get("hash") for each in exported.lineage.get("model", [])}
    for path in sorted(exported.folder.parent.glob(f"*/{MANIFEST}")):
        try:
            neighbour = Artifact.load(path.parent, verify=False)
        except IntegrityError:  # it is reported for itself
            continue
        if neighbour.hash in wanted:
            return neighbour
    made = [each.get("from", "") for each in exported.lineage.get("model", [])]
    if _in_run(exported.folder) and any(STEP_FOLDER.match(each) for each in made):
        raise IntegrityError(f"the model that it was made from ({', '.join(made)}) is missing; decoct run makes it")
    raise DataError("the model that it was made from does not stand beside it")


def _program(source: Artifact, task: Task, side: str) -> nn.Module:
    """What answers as the source of a file does: its model, or the float file that was quantized."""
    from decoct.models.onnx_file import open_session
    from decoct.models.saving import load_model
    from decoct.steps.shipping.quantize import FileProgram
    from decoct.targets.onnx import FILE

    if source.kind == "exported":
        return FileProgram(open_session(source.file(FILE)))
    return task.reading(side).program(load_model(source).module).eval()


def _allowed(record: Mapping[str, Any], found: Parity, tolerance: float) -> tuple[float, float]:
    """How far a file may be from its source: at most, and on average.

    One quantized after training: what was recorded, on samples that may be others; one with learned quantizers: what
    rounding in another order can do.
    """
    from decoct.steps.shipping.proof import ROUNDED, ROUNDED_MEAN

    verified, quantized = record["verified"], record.get("quantization")
    if quantized is None and "tolerance" not in verified:
        return tolerance, tolerance
    if quantized is None or "quantizers" in quantized["facts"]:
        one = found.spread / found.scale
        return max(tolerance, ROUNDED * one), max(tolerance, ROUNDED_MEAN * one)
    return (SLACK * verified["max_abs_diff"] + tolerance, SLACK * verified["mean_abs_diff"] + tolerance)


def _settings(recipe: Recipe, name: str) -> tuple[int, float]:
    """Of the step that wrote a file: samples, and tolerance (where it has none, that of an export)."""
    from decoct.steps.shipping.export import Export
    from decoct.steps.shipping.quantize import Quantize

    plain = Export(name="export")
    step = next((step for step in recipe.steps if step.name == name), plain)
    samples = step.samples if isinstance(step, Export | Quantize) else plain.samples
    return samples, step.tolerance if isinstance(step, Export | Quantize) else plain.tolerance
