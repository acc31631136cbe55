"""Results: what the steps of a run measured, put together for results.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from decoct.artifact import Artifact
from decoct.steps.records import EXPORTED, RECORDS, REPORT, SEARCHED, SPEED, Exported, Records, Report, Searched, Timed

if TYPE_CHECKING:
    from decoct.recipe.graph import Node


def gathered(nodes: Sequence[Node], artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """The models that were measured, with the steps each came through (`chain`), their comparisons, samples on which
    two of them differ, the machine, what was compressed, and the soft-label stores; `artifacts` by their node's id."""
    models: list[dict[str, Any]] = []
    comparisons: list[dict[str, Any]] = []
    machine: dict[str, Any] = {}
    examples: dict[str, Any] = {}
    for node in nodes:
        artifact = artifacts[node.id]
        if artifact.kind == "records":
            records = artifact.json(RECORDS, Records)
            for record in records["models"]:
                _add(models, record)
            comparisons += records.get("comparisons", [])
            machine = records.get("machine", machine)
            examples = examples or records.get("examples", {})
    chains, own = Chains(nodes), _ids(nodes)
    for record in models:
        record["chain"] = chains.to(str(record.get("step", "")))
        _place(record, own.get(str(record.get("step", "")), ()))
    return {
        "models": models,
        "comparisons": comparisons,
        "examples": examples,
        "machine": machine,
        "compressions": compressions(nodes, artifacts),
        "stores": stores(nodes, artifacts),
    }


def _ids(nodes: Sequence[Node]) -> dict[str, list[str]]:
    """The ids of each step's nodes, by its name."""
    found: dict[str, list[str]] = {}
    for node in nodes:
        found.setdefault(node.step.name, []).append(node.id)
    return found


def _place(record: dict[str, Any], own: Sequence[str]) -> None:
    """Puts a model's path right where its step, with these nodes, has another place than when it was measured."""
    old = record.get("path")
    if own and isinstance(old, str) and old not in own:
        record["path"] = own[0]
        if isinstance(record.get("artifact"), str):
            record["artifact"] = record["artifact"].replace(f"{old}/", f"{own[0]}/", 1)


class Chains:
    """The steps that results came through by role `model`."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.by_id = {node.id: node for node in nodes}
        self.first = {node.step.name: node for node in reversed(nodes)}

    def to(self, step: str) -> list[str]:
        """Those up to a step's result, oldest first, itself last; empty if unknown."""
        at, found = self.first.get(step), list[str]()
        while at is not None:
            found.append(at.step.name)
            at = next((self.by_id[each] for each in at.inputs.get("model", ()) if each in self.by_id), None)
        return found[::-1]


def compressions(nodes: Sequence[Node], artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """One entry for each step that made a model smaller, of its first seed, in the order of the recipe."""
    found: dict[str, dict[str, Any]] = {}
    chains = Chains(nodes)
    for node in nodes:
        record = _compression(artifacts[node.id])
        if record and node.step.name not in found:
            artifact, line = artifacts[node.id], chains.to(node.step.name)
            own = next(iter(node.inputs.get("model", ())), "")
            found[node.step.name] = {
                **record,
                "step": node.step.name,
                "use": node.step.use,
                "seed": node.seed,
                "path": artifact.folder.name,
                "source": line[-2] if len(line) > 1 else own,
                **({"scores": dict(artifact.scores)} if artifact.kind == "model" else {}),
            }
    return [_finite(each) for each in found.values()]


def stores(nodes: Sequence[Node], artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """One entry for each soft-label store: its size, what compression cost, the views and the teacher."""
    found = []
    for node in nodes:
        artifact = artifacts[node.id]
        if artifact.kind == "store":
            facts = {name: artifact.meta[name] for name in ("summary", "statistics", "views", "keep", "features")}
            teacher = artifact.meta["teacher"]["fingerprint"]
            path = artifact.folder.name
            found.append({"step": node.step.name, "seed": node.seed, "path": path, "teacher": teacher, **facts})
    return [_finite(each) for each in found]


def _compression(artifact: Artifact) -> dict[str, Any]:
    """What an artifact's own reports say of how it was made smaller; empty where nothing was."""
    found = _read(artifact, REPORT, Report)
    exported, searched = _read(artifact, EXPORTED, Exported), _read(artifact, SEARCHED, Searched)
    if "quantization" in exported:
        found |= _quantized(exported) | _speed(artifact)
    if searched:
        names = ("setting", "chosen", "tries")
        found |= {name: searched[name] for name in names} | {"tried": searched["step"]}
        kept = (each["budgets"] for each in searched["tries"] if each["value"] == searched["chosen"])
        found["budgets"] = next(kept, {})
    return found


def _speed(artifact: Artifact) -> dict[str, Any]:
    """How a file in integers compares with its float file; empty where it was not timed."""
    found = _read(artifact, SPEED, Timed)
    return {"speed": found} if found else {}


def _quantized(exported: Mapping[str, Any]) -> dict[str, Any]:
    """exported.json of quantize in the shape of the other steps' reports; ranges of tensors stay in that file."""
    quantization = dict(exported["quantization"])
    facts = dict(quantization.get("facts", {}))
    sensitivity = facts.pop("sensitivity", [])
    facts.pop("ranges", None)
    counts = {"parameters": exported.get("parameters"), "macs": exported.get("macs")}
    verified = exported.get("verified", {})
    return {
        "scheme": quantization.get("scheme", {}),
        "before": {**counts, "file_bytes": exported.get("float_bytes")},
        "after": {**counts, "file_bytes": exported.get("file_bytes")},
        "changes": quantization.get("changes", []),
        "quantization": {"calibration": quantization.get("calibration", {}), "facts": facts},
        "audit": exported.get("audit", {}),
        "sensitivity": sensitivity,
        "budgets": exported.get("budgets", {}),
        "verified": {name: each for name, each in verified.items() if isinstance(each, int | float)},
    }


def _read(artifact: Artifact, name: str, shape: Any) -> dict[str, Any]:
    """A JSON file of an artifact; empty where it has none."""
    return dict(artifact.json(name, shape)) if (artifact.folder / name).is_file() else {}


def _add(models: list[dict[str, Any]], record: dict[str, Any]) -> None:
    """Adds the record of a model; one of scores alone goes to the record of the same name."""
    known = next((each for each in models if each["name"] == record["name"] and "latency" not in record), None)
    if known is None:
        models.append(record)
    else:
        known |= {name: {**record.get(name, {}), **known.get(name, {})} for name in ("quality", "quality_sd")}


def _finite(value: Any) -> Any:
    """JSON data with None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
