"""Whether the files of a run are as they were written, and exported files still say what their models say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from decoct.artifact import MANIFEST, Artifact, damaged, read_manifest
from decoct.errors import DataError, DecoctError, IntegrityError

if TYPE_CHECKING:
    from decoct.recipe import Recipe
    from decoct.steps.export import Export


@dataclass(frozen=True)
class Verified:
    """One artifact: its folder, how many files it has, what is wrong, and how an exported file compares."""

    artifact: str
    files: int
    wrong: tuple[str, ...] = ()
    parity: str = ""


def verify_run(folder: Path | str, *, offline: bool = False) -> list[Verified]:
    """Compares every file of a run, or of one artifact, with its checksum, and exported files with their models.

    A comparison that cannot be made (data absent, a model from Python) is said in `parity`, not counted as wrong.
    DataError if there is nothing to verify.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder of a run or of one artifact")
    found = [folder] if (folder / MANIFEST).exists() else sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    found = [each for each in found if not each.name.startswith(".")]
    if not found:
        raise DataError(f"{folder}: holds no artifact; give the folder of a run or of one artifact")
    return [_verified(each, offline) for each in found]


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
    from decoct import run
    from decoct.models.saving import load_model
    from decoct.recipe import Recipe
    from decoct.steps import export
    from decoct.steps.base import Context
    from decoct.targets import CATALOGUE
    from decoct.targets.base import Target

    record = exported.json(export.RECORD)
    source = _source(exported)
    if source.kind == "estimator":
        return "is the estimator's own file"
    recipe = Recipe.load(exported.folder.parent / "recipe.yaml")
    data, task = run.prepare(recipe, run.Options(offline=offline))
    settings = _settings(recipe, exported.name)
    target = CATALOGUE.resolve(record["target"]["use"]).parse(record["target"])
    assert isinstance(target, Target)
    context = Context(task, data, exported.name, exported.folder, exported.folder, seed=0)
    program = task.program(load_model(source), record["side"]).eval()
    session = target.load(exported.file(record["file"]))
    samples = export.verification(context, settings.samples)
    found = export.compare(program, session, samples, task, record["side"])
    if not found.max_abs_diff <= settings.tolerance:
        raise IntegrityError(
            f"{record['file']} differs from its model by {found.max_abs_diff:.2g}; tolerance is {settings.tolerance:g}"
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
    raise DataError("the model that it was made from does not stand beside it")


def _settings(recipe: Recipe, name: str) -> Export:
    from decoct.steps.export import Export as Step

    steps = [step for step in recipe.steps if isinstance(step, Step)]
    return next((step for step in steps if step.name == name), Step(name="export"))
