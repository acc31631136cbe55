"""The end of a run, good or bad: results, log, page and card, and the manifest that vouches for them."""

from __future__ import annotations

import importlib.metadata as metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decoct.artifact import MANIFEST, Artifact, sha256, write_whole
from decoct.errors import DecoctError
from decoct.report.run_manifest import CARD, PAGE, RUN_MANIFEST, MadeStep, RunManifest, seal
from decoct.runner.logs import GrowingLog
from decoct.runner.results import gathered

if TYPE_CHECKING:
    from decoct.data.base import Dataset
    from decoct.recipe.graph import Node
    from decoct.recipe.recipe import Recipe
    from decoct.tasks.base import Task


@dataclass(frozen=True)
class Ended:
    """A run at its end: what it was made from, the nodes in order, and the artifacts of those that were reached."""

    recipe: Recipe
    folder: Path
    data: Dataset
    task: Task
    sources: Mapping[str, Dataset]
    nodes: Sequence[Node]
    artifacts: Mapping[str, Artifact]
    steps: Sequence[Mapping[str, Any]]
    wall: float
    device: str
    processes: int
    log: GrowingLog
    folders: Sequence[str] = ()
    """The step folders that stand here."""
    failed: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, Any] = field(default_factory=dict)
    """What was held against the recipe's limits; empty where it has none."""

    @property
    def reached(self) -> list[Node]:
        """The nodes that have an artifact."""
        return [node for node in self.nodes if node.id in self.artifacts]

    def manifest(self) -> RunManifest:
        """The manifest, its files aside."""
        steps = [_made(node, self.artifacts[node.id]) for node in self.reached]
        return RunManifest(
            "failed" if self.failed else "finished",
            tuple(self.folders),
            tuple(steps),
            failed=dict(self.failed),
            kept=str(self.limits.get("kept_path") or ""),
        )


def write_end(ended: Ended) -> dict[str, Any]:
    """Writes log, results, page and card, and last the manifest, until which none of them is vouched for."""
    from decoct.report.card import card
    from decoct.report.page import page
    from decoct.report.records import as_results
    from decoct.report.runs import Run

    folder, results = ended.folder, results_of(ended)
    ended.log.finish(ended.reached, ended.artifacts)
    write_whole(folder / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    read = Run(folder, folder.resolve().name, as_results(results), ended.recipe.yaml())
    write_whole(folder / PAGE, page([read]))
    write_whole(folder / CARD, card(read))
    seal(folder, ended.manifest())
    return results


def results_of(ended: Ended) -> dict[str, Any]:
    """What stands in results.json; of a run that failed, the figures of the steps before that."""
    import torch

    recipe, (metric, direction) = ended.recipe, ended.task.metric
    measured = gathered(ended.reached, ended.artifacts)
    wall = ended.wall + sum(each["wall_s"] for each in ended.steps if each["skipped"])
    return {
        "decoct": metadata.version("decoct"),
        "sealed": RUN_MANIFEST,
        "recipe": recipe.plain(defaults=False),
        "seed": recipe.seed,
        "seeds": sorted({node.seed for node in ended.nodes}),
        "device": ended.device,
        "processes": ended.processes,
        "threads": torch.get_num_threads(),
        "wall_s": round(wall, 3),
        "task": {"use": ended.task.use, "metric": metric, "direction": direction, "item": ended.task.answer.item},
        "data": {"use": recipe.data.use, "fingerprint": ended.data.fingerprint, **_sources(ended)},
        "models": measured["models"],
        "comparisons": measured["comparisons"],
        **({"examples": measured["examples"]} if measured["examples"] else {}),
        "compressions": measured["compressions"],
        "stores": measured["stores"],
        "steps": [dict(each) for each in ended.steps],
        "machine": measured["machine"],
        "versions": versions(),
        **({"failed": dict(ended.failed)} if ended.failed else {}),
        **({"limits": dict(ended.limits)} if ended.limits else {}),
    }


def failure(node: Node, error: Exception) -> dict[str, Any]:
    """The step at which a run failed, and why; 1 is the exit code of what was not raised on purpose."""
    code = error.exit_code if isinstance(error, DecoctError) else 1
    said = {"type": type(error).__name__, "message": str(error), "exit_code": code}
    return {"step": node.step.name, "use": node.step.use, "seed": node.seed, **said}


def versions() -> dict[str, str]:
    """The versions of the libraries that a result can hang on."""
    return {name: metadata.version(name) for name in ("torch", "onnx", "onnxruntime", "numpy", "decoct")}


def _made(node: Node, artifact: Artifact) -> MadeStep:
    inputs = {role: list(ids) for role, ids in node.inputs.items()}
    seen = sha256(artifact.folder / MANIFEST)
    step = node.step
    return MadeStep(artifact.folder.name, step.name, step.use, node.seed, inputs, seen, artifact.hash)


def _sources(ended: Ended) -> dict[str, Any]:
    found = {
        name: {"use": ended.recipe.sources[name].use, "fingerprint": each.fingerprint}
        for name, each in ended.sources.items()
    }
    return {"sources": found} if found else {}
