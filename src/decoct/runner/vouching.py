"""Whether the artifacts of a run vouch for its figures: those in results.json and log.jsonl are gathered once more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decoct.artifact import MANIFEST, Artifact, read_json, read_manifest, sha256
from decoct.errors import DecoctError, IntegrityError
from decoct.report.run_manifest import AGAIN, MadeStep, RunManifest, read_run_manifest
from decoct.runner.logs import LOG, joined_log
from decoct.runner.results import gathered

RESULTS = "results.json"
READ = (".json", ".jsonl")
"""Endings of the files of an artifact that figures are gathered from."""


@dataclass(frozen=True)
class _Name:
    name: str
    use: str


@dataclass(frozen=True)
class _Node:
    """A step that was made, as far as gathering asks."""

    id: str
    step: _Name
    seed: int
    inputs: Mapping[str, tuple[str, ...]]


def refuse_unvouched(run: Path) -> RunManifest | None:
    """IntegrityError where files of a run are not those that were written, or no artifact vouches for its figures.

    None for a run that has no manifest, as 0.1.0 wrote them.
    """
    manifest = read_run_manifest(run)
    wrong = [] if manifest is None else manifest.wrong(run) or unvouched(run, manifest)
    if wrong:
        raise IntegrityError("\n".join(f"{run}: {each}" for each in wrong))
    return manifest


def unvouched(run: Path, manifest: RunManifest) -> list[str]:
    """Which figures of a run that ended its artifacts do not vouch for, one sentence each; empty when all is well."""
    if manifest.state == "running":
        return []
    artifacts: dict[str, Artifact] = {}
    wrong = []
    for made in manifest.steps:
        try:
            artifacts[made.folder] = _loaded(run, made)
        except IntegrityError as error:
            wrong.append(str(error).removeprefix(f"{run}/"))
    if wrong:
        return wrong
    nodes: Any = [_node(made) for made in manifest.steps]
    try:
        results = read_json(run / RESULTS, dict[str, Any])
        found = json.loads(json.dumps(gathered(nodes, artifacts)))
        log = joined_log(nodes, artifacts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DecoctError) as error:
        return [f"{RESULTS} cannot be compared with the artifacts ({type(error).__name__}: {error}); {AGAIN}"]
    for part, own in found.items():
        told = results.get(part, {} if part == "examples" else None)  # left out where none are shown
        place = _differing(told, own, part)
        if place:
            wrong.append(f"{RESULTS}: no artifact vouches for {place}; {AGAIN}")
    if (run / LOG).is_file() and (run / LOG).read_text(encoding="utf-8") != log:
        wrong.append(f"{LOG}: no artifact vouches for it; {AGAIN}")
    return wrong


def _loaded(run: Path, made: MadeStep) -> Artifact:
    """An artifact whose manifest is the one that the run names, and whose records are as they were written.

    A store may have been completed since then, by the same answers.
    """
    folder = run / made.folder
    manifest = read_manifest(folder)
    found = Artifact.load(folder, verify=False)
    if sha256(folder / MANIFEST) != made.manifest and (found.kind != "store" or found.hash != made.hash):
        raise IntegrityError(f"{made.folder}: {MANIFEST} is not what the run wrote; decoct run makes both agree")
    for name, expected in manifest["files"].items():
        path = folder / name
        if path.suffix in READ and (not path.is_file() or sha256(path) != expected["sha256"]):
            raise IntegrityError(f"{made.folder}: {name} is missing or damaged; decoct run makes it again")
    return found


def _node(made: MadeStep) -> _Node:
    inputs = {role: tuple(ids) for role, ids in made.inputs.items()}
    return _Node(made.folder, _Name(made.name, made.use), made.seed, inputs)


def _differing(told: Any, own: Any, place: str) -> str:
    """The first place where what is told is not what the artifacts say; they may say more."""
    if isinstance(told, dict) and isinstance(own, dict):
        pairs = ((told[key], own.get(key), f"{place}.{key}") for key in told)
    elif isinstance(told, list) and isinstance(own, list) and len(told) == len(own):
        pairs = ((a, b, f"{place}[{i}]") for i, (a, b) in enumerate(zip(told, own)))
    else:
        return "" if type(told) is type(own) and told == own else place
    return next((found for each in pairs if (found := _differing(*each))), "")
