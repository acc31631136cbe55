"""The limits of a recipe: which artifacts of its chain keep them, and which of these is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from decoct.artifact import Artifact
from decoct.errors import RecipeError
from decoct.meters.machine import machine
from decoct.report.chain import ALONE
from decoct.runner.results import Chains
from decoct.steps.base import TRAIN, Context
from decoct.steps.learning.batches import has_split
from decoct.steps.limits import Limits
from decoct.steps.shipping.benchmark import finite
from decoct.steps.shipping.candidates import target_of
from decoct.steps.shipping.limits import Held, held, quality

if TYPE_CHECKING:
    from decoct.recipe.graph import Node

FILES = ("model", "exported", "estimator")
"""Kinds of artifacts that answer."""


def judged_nodes(nodes: Sequence[Node]) -> list[Node]:
    """The nodes whose artifacts are held against the limits: all that come, by role `model`, from the model that the
    last of them comes from, under the first seed; neither teachers nor what is there for comparison."""
    first = [node for node in nodes if node.seed == nodes[0].seed and node.step.gives in FILES]
    teachers = {
        each
        for node in nodes
        if node.step.gives != "records"
        for role, ids in node.inputs.items()
        if role not in ("model", TRAIN)
        for each in ids
    }
    chains = Chains(nodes)
    names = {node.id: node.step.name for node in nodes}
    aside = {names[each] for each in teachers if each in names} | {ALONE}
    lines = {node.id: chains.to(node.step.name) for node in first}
    own = [node for node in first if not _of_a_teacher(lines[node.id], aside, first)]
    if not own:
        return []
    root = lines[own[-1].id][0]
    return [node for node in own if root in lines[node.id]]


def _of_a_teacher(line: Sequence[str], aside: set[str], first: Sequence[Node]) -> bool:
    """Whether a line of steps is a teacher's: it never leaves what teaches for something that is taught."""
    taught = {node.step.name for node in first if any(role not in ("model", TRAIN) for role in node.inputs)}
    return bool(aside & set(line)) and not taught & set(line) - aside


def reference_of(root: Node, nodes: Sequence[Node]) -> Node | None:
    """The teacher that the loss of quality is counted from: that of the chain's first step, of a store the one that
    labelled it; the first step itself where no step of this run taught it."""
    by_id = {node.id: node for node in nodes}
    at, found = root, None
    seen: set[str] = set()
    while at.id not in seen:
        seen.add(at.id)
        if at is not root and at.step.gives in FILES:
            found = at
            break
        roles = sorted((role for role in at.inputs if role not in ("model", TRAIN)), key=lambda role: role != "teacher")
        taught = [by_id[each] for role in roles for each in at.inputs[role] if each in by_id]
        if not taught:
            break
        at = taught[0]
    return root if found is None else found


class Limiting:
    """Holds each artifact of a run's chain against the recipe's limits, once; what an earlier run measured stays."""

    def __init__(self, limits: Limits, nodes: Sequence[Node], earlier: Mapping[str, Any]) -> None:
        self.limits = limits
        self.nodes = judged_nodes(nodes)
        if not self.nodes:
            raise RecipeError("limits: no step of this recipe gives a model of its chain that could keep them")
        by_name = {node.step.name: node for node in nodes if node.seed == nodes[0].seed}
        root = by_name[Chains(nodes).to(self.nodes[-1].step.name)[0]]
        self.reference = reference_of(root, nodes)
        self.machine = machine()
        self.held: list[dict[str, Any]] = []
        self.score: float | None = None
        self.metric = ""
        self.before = _measured_before(earlier, self.machine, limits)
        self.score_before = earlier.get("limits", {}).get("reference_quality") if self.before else None

    def judge(self, node: Node, artifacts: Mapping[str, Artifact], context: Callable[[], Context]) -> None:
        """Takes the artifact of a node that is done into the account, where it is one of the chain."""
        if all(node.id != each.id for each in self.nodes):
            return
        artifact = artifacts[node.id]
        if artifact.kind not in FILES:
            return
        room = context()
        self.metric = room.task.metric[0]
        found = self.before.get(self._key(artifact, artifacts))
        if found is None:
            found = held(self.limits, artifact, room, self._reference(artifacts, room))
        elif self.score is None:
            self.score = self.score_before
        judged = Held(self.limits.asked(), found, self.metric, self.limits.quantile)
        over = {name: judged.over(name) for name in judged.broken}
        self.held.append(
            {
                "step": node.step.name,
                "use": node.step.use,
                "path": artifact.folder.name,
                "artifact": _file(artifact),
                "key": self._key(artifact, artifacts),
                "found": dict(found),
                "broken": over,
                "words": judged.words(),
                "distance": judged.distance if judged.distance < float("inf") else None,
            }
        )

    def record(self) -> dict[str, Any]:
        """What results.json says: what was asked, each artifact that was held against it, and the one that is kept."""
        found: dict[str, Any] = finite(self._record())
        return found

    def _record(self) -> dict[str, Any]:
        good = [each for each in self.held if not each["broken"]]
        near = min(self.held, key=lambda each: (each["distance"] is None, each["distance"] or 0.0), default=None)
        return {
            "asked": self.limits.asked(),
            "quantile": self.limits.quantile,
            "metric": self.metric,
            "reference": None if self.reference is None else self.reference.step.name,
            "reference_quality": self.score,
            "kept": good[-1]["step"] if good else None,
            "kept_path": good[-1]["path"] if good else None,
            "nearest": None if good or near is None else near["step"],
            "steps": self.held,
            "machine": self.machine,
        }

    def _reference(self, artifacts: Mapping[str, Artifact], context: Context) -> float | None:
        """The reference's score, as the file that it would ship as has it."""
        if self.limits.max_quality_loss is None or self.reference is None:
            return None
        if self.score is None and self.reference.id in artifacts:
            self.score = quality(artifacts[self.reference.id], context)
        return self.score

    def _key(self, artifact: Artifact, artifacts: Mapping[str, Artifact]) -> str:
        reference = artifacts.get(self.reference.id) if self.reference is not None else None
        return f"{artifact.hash}/{reference.hash if reference is not None else ''}"


def refuse_blind_limits(limits: Limits | None, context: Context) -> None:
    """RecipeError where the quality of nothing could be measured."""
    if limits is not None and limits.max_quality_loss is not None and not has_split(context, "validation"):
        raise RecipeError(
            "limits.max_quality_loss needs a validation split, and the data have none; give data.validation, as 0.1"
        )


def _measured_before(earlier: Mapping[str, Any], here: Mapping[str, Any], limits: Limits) -> dict[str, dict[str, Any]]:
    """What an earlier run measured of the same limits on this machine, by the hashes of artifact and reference."""
    record = earlier.get("limits")
    if not isinstance(record, dict) or record.get("machine") != dict(here) or record.get("quantile") != limits.quantile:
        return {}
    found = {}
    for each in record.get("steps", []):
        if isinstance(each, dict) and set(limits.asked()) <= set(each.get("found", {})):
            found[str(each.get("key"))] = {name: each["found"][name] for name in limits.asked()}
    return found


def _file(artifact: Artifact) -> str | None:
    """The path of what ships, from the run's folder; None for a model that no step has exported."""
    if artifact.kind == "model":
        return None
    return f"{artifact.folder.name}/{target_of(artifact)[1].name}"
