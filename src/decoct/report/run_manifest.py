"""The manifest of a run: how it ended, what its steps made, and the checksum of each file of the run as a whole."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from decoct.artifact import Strict, check_shape, read_sealed, sealed, sha256, write_whole
from decoct.errors import RecipeError

RUN_MANIFEST = "run.json"
PAGE, CARD = "report.html", "model_card.md"
RECORDS = ("results.json", "recipe.yaml", "log.jsonl")
"""What pages and cards are written from."""
FILES = (*RECORDS, PAGE, CARD)
"""The files of a run as a whole; those of its steps stand in their own manifests."""
AGAIN = "decoct run writes it again"

STEP_FOLDER = re.compile(r"\d\d+-[^/\\]+")
"""What the folders of steps are called."""

State = Literal["running", "failed", "finished"]


def _of_a_step(name: str) -> str:
    if not STEP_FOLDER.fullmatch(name):
        raise ValueError("no folder of a step is called so")
    return name


Folder = Annotated[str, AfterValidator(_of_a_step)]
"""A folder inside the run: what a manifest names is moved and read, and must lie nowhere else."""


class _Step(Strict):
    folder: Folder
    name: str
    use: str
    seed: int
    inputs: dict[str, list[str]]
    manifest: str
    hash: str


class _Sums(Strict):
    bytes: int
    sha256: str


class _Shape(Strict):
    """Shape of run.json."""

    state: State
    folders: list[Folder]
    steps: list[_Step]
    files: dict[str, list[_Sums]]
    failed: dict[str, Any] = Field(default={})
    kept: str = ""


@dataclass(frozen=True)
class MadeStep:
    """What a step made: its folder, the ids of its inputs by role, the SHA-256 of its manifest, the artifact's hash."""

    folder: str
    name: str
    use: str
    seed: int
    inputs: Mapping[str, Sequence[str]]
    manifest: str
    hash: str


@dataclass(frozen=True)
class RunManifest:
    """`state` is running from the first write of a run to its last: until then no file of the run is vouched for.

    `files` holds for each file what it may be: while one is written again, the old content and the new one, so that a
    run is whole whenever the writer dies. `folders` are the step folders that runs have made here; `kept` is the one
    whose artifact kept the recipe's limits last, empty where there are no limits or none did.
    """

    state: State
    folders: tuple[str, ...] = ()
    steps: tuple[MadeStep, ...] = ()
    files: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    failed: Mapping[str, Any] = field(default_factory=dict)
    kept: str = ""

    def wrong(self, run: Path, names: Iterable[str] = FILES) -> list[str]:
        """What of these files of a run is not as it was written, one sentence a file."""
        found = []
        for name in names if self.state != "running" else ():
            allowed, path = self.files.get(name, ()), run / name
            if not path.is_file():
                found += [f"{name} is missing; {AGAIN}"] if allowed else []
            elif not any(dict(each) == _sums(path) for each in allowed):
                why = f"its SHA-256 differs from {RUN_MANIFEST}" if allowed else f"{RUN_MANIFEST} does not name it"
                found.append(f"{name} is damaged: {why}; {AGAIN}")
        return found

    def text(self) -> str:
        """The manifest as its file holds it."""
        steps = [
            {**vars(each), "inputs": {role: list(ids) for role, ids in each.inputs.items()}} for each in self.steps
        ]
        files = {name: [dict(each) for each in allowed] for name, allowed in self.files.items()}
        return sealed(
            {
                "format": 1,
                "state": self.state,
                "folders": list(self.folders),
                "steps": steps,
                "files": files,
                "failed": dict(self.failed),
                **({"kept": self.kept} if self.kept else {}),
            }
        )


def read_run_manifest(run: Path) -> RunManifest | None:
    """The manifest of a run; None where it has none (0.1.0 wrote none), IntegrityError where it is damaged."""
    path = Path(run) / RUN_MANIFEST
    try:
        content = check_shape(read_sealed(path), str(path), _Shape)
    except (FileNotFoundError, NotADirectoryError):
        return None
    known = [each.name for each in fields(MadeStep)]
    steps = tuple(MadeStep(**{name: each[name] for name in known}) for each in content["steps"])
    return RunManifest(
        content["state"],
        tuple(content["folders"]),
        steps,
        content["files"],
        content.get("failed", {}),
        content.get("kept", ""),
    )


def seal(run: Path, manifest: RunManifest) -> RunManifest:
    """Writes the manifest of a run that ended, with the checksums of the files as they are now."""
    files = {name: [_sums(run / name)] for name in FILES if (run / name).is_file()}
    whole = replace(manifest, files=files)
    write_whole(run / RUN_MANIFEST, whole.text())
    return whole


def write_page_file(path: Path, content: str) -> None:
    """Writes a page or card whole or not at all; one of a run that ended stays vouched for, whenever the writer dies.

    RecipeError where the file would replace one of the run's records.
    """
    run, name = path.parent, path.name
    manifest = read_run_manifest(run)
    if name in (*RECORDS, RUN_MANIFEST) and (manifest is not None or path.exists()):
        raise RecipeError(f"{path} is a record of the run; give another file, as {run / PAGE}")
    if manifest is None or manifest.state == "running" or name not in FILES:
        write_whole(path, content)
        return
    encoded = content.encode()
    new = {"bytes": len(encoded), "sha256": hashlib.sha256(encoded).hexdigest()}
    old = [each for each in manifest.files.get(name, ()) if dict(each) != new]
    write_whole(run / RUN_MANIFEST, replace(manifest, files={**manifest.files, name: [*old, new]}).text())
    write_whole(path, encoded)
    write_whole(run / RUN_MANIFEST, replace(manifest, files={**manifest.files, name: [new]}).text())


def _sums(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}
