"""Saved: a model that an earlier run left as an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from decoct.artifact import MANIFEST, Artifact, Strict, read_json
from decoct.errors import DataError, IntegrityError, RecipeError
from decoct.models.base import Interface, KeptModel

if TYPE_CHECKING:
    from torch import nn


RESULTS = "results.json"
TEACHES, FOR_COMPARISON = "teacher", "student_alone"
"""Names that models of a run have beside its student."""


class Saved(KeptModel):
    """The artifact in a folder that an earlier run made: a model, an estimator or an exported file.

    `path`: the artifact's folder, such as runs/digits/01-teacher, or a run's, whose last student it then is. As a
    student it is trained further; as a teacher it answers as it is.
    """

    use: ClassVar[str] = "artifact"
    positional: ClassVar[tuple[str, ...]] = ("path",)
    path: Path

    def open(self) -> Artifact:
        """The artifact, checked; RecipeError where there is none."""
        return open_folder(self.path)

    def build(self, interface: Interface, *, pretrained: bool = True) -> nn.Module:
        raise AssertionError("an artifact is opened, not built")


def open_folder(path: Path) -> Artifact:
    """The artifact in a folder that a setting `path` names, checked; RecipeError where there is none."""
    if not (path / MANIFEST).is_file() and (path / RESULTS).is_file():
        path = student_of(path, ("model",))
    try:
        return Artifact.load(path)
    except IntegrityError as error:
        if path.is_dir() and (path / MANIFEST).is_file():
            raise
        raise RecipeError(f"path is {path}, which holds no artifact ({error}); give a step's folder") from None


class _Model(Strict):
    name: str
    path: str = ""


class _Results(Strict):
    """Shape of results.json, of what is read of it here."""

    models: list[_Model]
    recipe: dict[str, Any] = {}
    limits: dict[str, Any] | None = None


def student_of(run: Path, kinds: tuple[str, ...] = ("exported", "model")) -> Path:
    """The folder of the last model of a run, of these kinds, that is neither its teacher nor for comparison; of a run
    with limits what they keep.

    Where files are not wanted, the model that a file was made of. DataError where the results name none.
    """
    results = read_json(run / RESULTS, _Results)
    limits = results.get("limits") or {}
    if limits.get("asked") and "exported" in kinds:
        kept = limits.get("kept_path")
        if not isinstance(kept, str) or Path(kept).name != kept or not (run / kept / MANIFEST).is_file():
            raise DataError(f"{run}: no artifact of it keeps its limits; give the folder of the step that you mean")
        return run / kept
    teachers = {TEACHES, FOR_COMPARISON, *_teachers(results["recipe"])}
    students: list[Path] = []
    for each in results["models"]:
        folder = run / each.get("path", "")
        if not each.get("path") or each["name"] in teachers or not (folder / MANIFEST).is_file():
            continue
        artifact = Artifact.load(folder, verify=False)
        source = str(artifact.meta.get("source", ""))
        if source in teachers:
            continue
        if artifact.kind not in kinds and source:
            folder = next((each.parent for each in sorted(run.glob(f"[0-9]*-{source}/{MANIFEST}"))), folder)
            artifact = Artifact.load(folder, verify=False)
        if artifact.kind in kinds:
            students.append(folder)
    if not students:
        raise DataError(f"{run}: its results name no student; give the folder of one of its steps")
    return students[-1]


def _teachers(recipe: Mapping[str, Any]) -> set[str]:
    """The steps of a recipe, as plain data, whose model teaches another one."""
    found: set[str] = set()
    for step in recipe.get("steps", ()):
        inputs = step.get("inputs", {}) if isinstance(step, Mapping) else {}
        if isinstance(inputs, Mapping) and step.get("use") not in ("benchmark", "robustness"):
            for role, given in inputs.items():
                if role != "model":
                    found |= (
                        {given} if isinstance(given, str) else set(given if isinstance(given, list | tuple) else ())
                    )
    return found
