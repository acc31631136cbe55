"""Folders of runs, read: their records, their recipes, and names that tell several apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from decoct.errors import IntegrityError
from decoct.report.records import RESULTS, Results, read_results
from decoct.report.run_manifest import AGAIN, RECORDS, RUN_MANIFEST, read_run_manifest


@dataclass(frozen=True)
class Run:
    """A run's folder, read: its name for readers, its records, its recipe as it was written."""

    folder: Path
    name: str
    results: Results
    recipe: str

    @property
    def vouched(self) -> bool:
        """Whether a manifest names the records that these were read from."""
        return bool(self.results.sealed)


def read_run(folder: Path, name: str = "") -> Run:
    """A run's folder; the recipe is the file as it was written, or else the resolved one of the results.

    Of a run that was stopped, or goes on, there is the recipe alone. DataError if the folder is none of a run,
    IntegrityError if its records are not those that its manifest names.
    """
    folder = Path(folder)
    name, manifest = name or folder.resolve().name, read_run_manifest(folder)
    if manifest is not None and manifest.state == "running":
        nothing = Results(sealed=RUN_MANIFEST, unfinished=True)
        return Run(folder, name, nothing, _recipe(folder, nothing))
    wrong = manifest.wrong(folder, RECORDS) if manifest is not None else []
    if wrong:
        raise IntegrityError("\n".join(f"{folder}: {each}" for each in wrong))
    results = read_results(folder)
    if manifest is None and results.sealed:
        raise IntegrityError(f"{folder / RUN_MANIFEST} is missing, which {RESULTS} names; {AGAIN}")
    return Run(folder, name, results, _recipe(folder, results))


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Several runs with names that differ: the folders' own, with their parents' where those are equal."""
    names = distinct([Path(folder).resolve() for folder in folders])
    return [read_run(folder, name) for folder, name in zip(folders, names)]


def distinct(paths: Sequence[Path]) -> list[str]:
    """The shortest endings of the paths that tell them apart; equal paths are numbered.

    >>> distinct([Path("/a/x"), Path("/b/x"), Path("/c/y")])
    ['a/x', 'b/x', 'y']
    """
    names = []
    for index, path in enumerate(paths):
        others = [other for other in paths if other != path]
        depth = 1
        while depth < len(path.parts) and any(other.parts[-depth:] == path.parts[-depth:] for other in others):
            depth += 1
        name = "/".join(path.parts[-depth:])
        before = list(paths[:index]).count(path)
        names.append(f"{name} ({before + 1})" if before else name)
    return names


def _recipe(folder: Path, results: Results) -> str:
    path = folder / "recipe.yaml"
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    if not results.recipe:
        return ""
    import yaml

    return yaml.safe_dump(results.recipe, sort_keys=False, allow_unicode=True)
