"""Whether the files of a run are as they were written, and exported files still say what their models say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decoct.artifact import MANIFEST, Artifact, damaged, described_by, read_json, read_manifest, understood
from decoct.data.index import changed
from decoct.errors import DataError, DecoctError, IntegrityError
from decoct.recipe import file as recipe_file
from decoct.recipe.graph import folder_name
from decoct.report.run_manifest import AGAIN, FILES, RUN_MANIFEST, STEP_FOLDER, read_run_manifest
from decoct.runner.vouching import unvouched

if TYPE_CHECKING:
    from torch import nn

    from decoct.recipe.recipe import Recipe
    from decoct.steps.shipping.parity import Parity
    from decoct.tasks.base import Task

RECIPE, RESULTS = "recipe.yaml", "results.json"
KEYS = ("decoct", "recipe", "seed", "seeds", "task", "data", "models", "comparisons", "steps", "versions")
"""What results.json always holds."""
SLACK = 1.5
"""How much further from its model than recorded a quantized file may be."""


@dataclass(frozen=True)
class Verified:
    """One artifact, or a run as a whole: its folder, how many files it has, what is wrong, how an exported file
    compares; `note` says how far a run is vouched for."""

    artifact: str
    files: int
    wrong: tuple[str, ...] = ()
    parity: str = ""
    note: str = ""


def verify_run(folder: Path | str, *, offline: bool = False) -> list[Verified]:
    """Compares every file of a run, or of one artifact, with its checksum, and exported files with their models.

    Of a run every step that its recipe.yaml and results.json name must be there, its own files (results, recipe, page,
    card, log) must be those that its manifest names, and its figures those of its artifacts; that is said under its
    folder. A run that did not end, or failed, is no damage: what is there is compared, and `note` says so; one without
    a manifest, as 0.1.0 wrote them, is not vouched for as a whole.
    A comparison that cannot be made (data absent, a model from Python) is said in `parity`, not counted as wrong.
    DataError if there is nothing to verify.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder of a run or of one artifact")
    if (folder / MANIFEST).exists() or _in_run(folder):
        return [_verified(folder, offline)]
    found = {path.parent.name for path in folder.glob(f"*/{MANIFEST}") if not path.parent.name.startswith(".")}
    whole: list[Verified] = []
    if any((folder / name).exists() for name in (RECIPE, RESULTS, RUN_MANIFEST)):
        named, run = _run(folder)
        found |= {path.name for path in folder.iterdir() if path.is_dir() and STEP_FOLDER.fullmatch(path.name)} | named
        whole = [run]
    if not found and not whole:
        raise DataError(f"{folder}: holds no artifact; give the folder of a run or of one artifact")
    steps = [_verified(folder / each, offline) for each in sorted(found)]
    bad = tuple(Path(each.artifact).name for each in steps if each.wrong)
    whole += _data(folder)
    told = [replace(run, wrong=tuple(line for line in run.wrong if not line.startswith(bad))) for run in whole]
    return told + steps


def _data(run: Path) -> list[Verified]:
    """Of each data set of a run what the index, which looks at sizes and times alone, would not see; nothing else."""
    from decoct.recipe.recipe import Recipe

    try:
        recipe = Recipe.load(run / RECIPE)
    except (DecoctError, OSError):
        return []
    found = []
    for data in (recipe.data, *recipe.sources.values()):
        wrong = tuple(f"{each} holds other bytes than the index remembers; run again" for each in changed(data))
        if wrong:
            found.append(Verified(str(data.path), len(data.files() or ()), wrong))
    return found


def _run(folder: Path) -> tuple[set[str], Verified]:
    """The step folders that must be there, and what is to be said of a run as a whole."""
    try:
        manifest = read_run_manifest(folder)
    except IntegrityError as error:
        return set(), Verified(str(folder), 0, (f"{error}; {AGAIN}",))
    if manifest is None:
        return _without_manifest(folder)
    if manifest.state == "running":
        note = "did not end, so that only what its steps made is vouched for; decoct run goes on from here"
        return set(), Verified(str(folder), 0, note=note)
    wrong = manifest.wrong(folder)
    if not wrong:
        wrong = unvouched(folder, manifest)
    note = f"failed at {manifest.failed.get('step')}, as its page says" if manifest.state == "failed" else ""
    named = {each.folder for each in manifest.steps}
    return named, Verified(str(folder), len(manifest.files), tuple(wrong), note=note)


def _without_manifest(folder: Path) -> tuple[set[str], Verified]:
    """The steps that the records name, of a run that has no manifest; wrong where one is missing."""
    wrong: list[str] = []
    named = _named(folder, wrong)
    try:
        sealed = bool(read_json(folder / RESULTS, dict[str, Any]).get("sealed"))
    except (OSError, IntegrityError):
        sealed = False
    if sealed:
        wrong.append(f"{RUN_MANIFEST} is missing, which {RESULTS} names; {AGAIN}")
    note = (
        f"its own files ({', '.join(FILES)}) are not vouched for: it has no {RUN_MANIFEST}, as runs of 0.1.0 have none"
    )
    return named, Verified(str(folder), 0, tuple(wrong), note="" if wrong else note)


def _in_run(folder: Path) -> bool:
    return bool(STEP_FOLDER.fullmatch(folder.resolve().name)) and (folder.resolve().parent / RECIPE).is_file()


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
        folders |= {each["path"] for each in results["models"] if STEP_FOLDER.fullmatch(each.get("path") or "")}
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
    if _left_over(folder):
        return Verified(str(folder), files, parity="of an earlier run: not compared with its model")
    try:
        return Verified(str(folder), files, parity=_parity(Artifact.load(folder, verify=False), offline))
    except IntegrityError as error:
        return Verified(str(folder), files, (str(error),))
    except DecoctError as error:
        return Verified(str(folder), files, parity=f"not compared with its model: {error}")


def _left_over(folder: Path) -> bool:
    """Whether an artifact stands in a run that did not end, or failed before its step was reached."""
    try:
        manifest = read_run_manifest(folder.resolve().parent)
    except IntegrityError:  # it is said of the run
        return False
    steps = {each.folder for each in manifest.steps} if manifest is not None else set()
    return manifest is not None and manifest.state != "finished" and folder.resolve().name not in steps


def _parity(exported: Artifact, offline: bool) -> str:
    """Runs file and model on the same real samples once more; IntegrityError where they differ."""
    from decoct.recipe.recipe import Recipe
    from decoct.runner import execution
    from decoct.steps.base import Context
    from decoct.steps.records import EXPORTED, Exported
    from decoct.steps.shipping import export
    from decoct.steps.shipping.parity import compare
    from decoct.targets.base import Target

    record = exported.json(EXPORTED, Exported)
    source = _source(exported)
    if source.kind == "estimator":
        return "is the estimator's own file"
    recipe = Recipe.load(exported.folder.parent / "recipe.yaml")
    data, task = execution.prepare(recipe, execution.Options(offline=offline))
    count, tolerance = _settings(recipe, exported.name)
    target = described_by("decoct.targets", record["target"], exported.folder / EXPORTED)
    assert isinstance(target, Target)
    context = Context(task, data, exported.name, exported.folder, exported.folder, seed=0)
    program = _program(source, task, record["side"])
    session = target.load(exported.file(record["file"]))
    reading = task.reading(record["side"])
    feeds = [reading.feed(batch) for batch in export.verification(context, count)]
    found = compare(program, session, feeds, reading.outputs)
    with understood(exported.folder / EXPORTED):
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
    if _in_run(exported.folder) and any(STEP_FOLDER.fullmatch(each) for each in made):
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
