"""Running a recipe: which steps are done already, in which folder, under which seed; results and page at the end."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decoct.artifact import Artifact, parse_json, read_json, unless_full, write_whole
from decoct.errors import IntegrityError, RecipeError
from decoct.models.base import KeptModel
from decoct.network import offline
from decoct.recipe.graph import Node, folder_name, graph
from decoct.runner.folders import lock, refuse_file, stamp, work_folder
from decoct.runner.keys import derive, key_of
from decoct.runner.results import gathered
from decoct.steps.base import Context, Step
from decoct.steps.labelling.step import Label
from decoct.store.sizes import refuse_small_disk, size_text
from decoct.training.heap import keep_freed_memory
from decoct.training.processes import ONE, Processes, joined, refuse_unequal

if TYPE_CHECKING:
    from decoct.data.base import Data, Dataset
    from decoct.recipe.recipe import Recipe
    from decoct.tasks.base import Task


Event = Mapping[str, Any]
"""What a watcher sees: `event` is started, progress, skipped or done; `step`, `seed`; and what belongs to it."""


@dataclass(frozen=True)
class Planned:
    """What will happen to a node: skipped or run, and why."""

    node: Node
    skip: bool
    why: str
    estimate: str = ""


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, `results` as in results.json, and the artifact of each node by folder name."""

    recipe: Recipe
    folder: Path
    results: Mapping[str, Any]
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)

    def artifact(self, step: str, seed: int | None = None) -> Artifact:
        """The artifact of a step, under the recipe's seed unless another is named."""
        wanted = self.recipe.seed if seed is None else seed
        number = self.recipe.steps.index(self.recipe.step(step))
        name = folder_name(number, step, None if wanted == self.recipe.seed else wanted)
        if name not in self.artifacts:
            raise RecipeError(
                f"no artifact of step {step!r} under seed {wanted}; there are {', '.join(self.artifacts)}"
            )
        return self.artifacts[name]


class Execution:
    """One pass over the nodes of a recipe in a folder."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        data: Dataset,
        task: Task,
        options: Options,
        sources: Mapping[str, Dataset] | None = None,
    ) -> None:
        self.recipe, self.folder, self.data, self.task, self.options = recipe, folder, data, task, options
        self.sources = dict(sources or {})
        self.processes = options.processes
        self.artifacts: dict[str, Artifact] = {}
        self.steps: list[dict[str, Any]] = []
        self.earlier = _earlier(folder)
        self.took = _times(self.earlier)

    def value(self, name: str) -> Any:
        """What stands behind the id of a node or the name of a model: an artifact or a Model Spec."""
        if name in self.artifacts:
            return self.artifacts[name]
        model = self.recipe.models[name]
        return model.open() if isinstance(model, KeptModel) else model

    def inputs(self, node: Node) -> dict[str, Any]:
        """By role an artifact or a Model Spec; for a step that gives records, those of all seeds."""
        values = {role: [self.value(each) for each in ids] for role, ids in node.inputs.items()}
        if node.step.gives == "records":
            return dict(values)
        return {role: each[0] for role, each in values.items()}

    def key(self, node: Node) -> str:
        """The hash of everything that the node's result depends on."""
        values = {role: [self.value(each) for each in ids] for role, ids in node.inputs.items()}
        return key_of(node.step, values, self.data, self.task, node.seed, self.options.precision, self.sources)

    def done(self, node: Node, key: str) -> tuple[Artifact | None, str]:
        """The artifact if it is there, whole and made from the same things; else why it must be made."""
        folder = self.folder / node.folder
        if not folder.is_dir():
            return None, "new"
        try:
            artifact = Artifact.load(folder)
        except IntegrityError as error:
            return None, f"damaged: {error}"
        if artifact.key != key:
            return None, "its settings or inputs changed"
        return artifact, "unchanged"

    def decide(self, node: Node) -> tuple[str, bool, str]:
        """The node's key, whether its artifact is there, and why it is made or left."""
        key = self.key(node)
        artifact, why = self.done(node, key)
        return key, artifact is not None, why

    def run(self, node: Node) -> Artifact:
        """Runs or skips one node; of several processes, the first decides."""
        key, there, why = self.processes.shared(lambda: self.decide(node))
        artifact = Artifact.load(self.folder / node.folder, verify=False) if there else None
        record = {"name": node.step.name, "use": node.step.use, "seed": node.seed, "why": why}
        if artifact is None:
            self.tell(node, event="started", why=why)
            begin = time.perf_counter()
            artifact = self.context(node, key).carry_out(node.step, self.inputs(node))
            wall = time.perf_counter() - begin
            self.steps.append({**record, **_left_out(artifact), "skipped": False, "wall_s": round(wall, 3)})
            self.tell(
                node, event="done", wall_s=wall, scores=dict(artifact.scores), summary=artifact.meta.get("summary")
            )
        else:
            took = self.took.get((node.step.name, node.seed), 0.0)
            self.steps.append({**record, **_left_out(artifact), "skipped": True, "wall_s": took})
            self.tell(node, event="skipped", why=why)
        if self.processes.first:
            self.tidy(node)
        self.artifacts[node.id] = artifact
        return artifact

    def context(self, node: Node, key: str) -> Context:
        """What the node's step runs in; checkpoints left by a run with another key are dropped."""
        work = self._work(node)
        self.processes.alone(lambda: work_folder(work, key), lambda: work)
        return Context(
            task=self.task,
            data=self.data,
            name=node.step.name,
            folder=self.folder / node.folder,
            work=work,
            seed=derive(node.seed, node.step.seed_name()),
            run_seed=node.seed,
            key=key,
            lineage={role: [self._lineage(each) for each in ids] for role, ids in node.inputs.items()},
            given=self.options.given,
            progress=lambda done, total, text: self.tell(node, event="progress", done=done, total=total, text=text),
            device=self.options.device,
            precision=self.options.precision,
            processes=self.processes,
            sources=self.sources,
        )

    def continues(self, node: Node, key: str) -> bool:
        """Whether checkpoints of this very node are there."""
        return stamp(self._work(node)) == key

    def tidy(self, node: Node) -> None:
        """Removes what a finished or killed process left beside a node's folder."""
        for left in ("work", "writing", "old"):
            shutil.rmtree(self.folder / f".{node.folder}.{left}", ignore_errors=True)

    def tell(self, node: Node, **what: Any) -> None:
        if self.processes.first:
            self.options.watch({"step": node.step.name, "seed": node.seed, **what})

    def _work(self, node: Node) -> Path:
        return self.folder / f".{node.folder}.work"

    def _lineage(self, name: str) -> dict[str, str]:
        value = self.value(name)
        if isinstance(value, Artifact):
            return {"step": value.name, "from": name, "hash": value.hash}
        return {"model": name, "digest": value.digest()}


@dataclass(frozen=True)
class Options:
    """How a run is carried out; of these only `precision` changes a result, where a step leaves its own open."""

    seeds: int = 1
    seeds_all: bool = False
    offline: bool = False
    device: str = "auto"
    precision: str = "no"
    given: Mapping[str, Any] = field(default_factory=dict)
    watch: Callable[[Event], None] = lambda event: None
    processes: Processes = ONE


def prepare(recipe: Recipe, options: Options) -> tuple[Dataset, Task]:
    """Opens the data and resolves the task."""
    return prepare_data(recipe.data, recipe.task, offline=options.offline)


def prepare_sources(recipe: Recipe, options: Options) -> dict[str, Dataset]:
    """The further sources, opened, by name."""
    return {name: each.open(offline=options.offline) for name, each in recipe.sources.items()}


def prepare_data(data: Data, task: Task, *, offline: bool = False) -> tuple[Dataset, Task]:
    """An opened data set, and the task with what the data decide."""
    opened = data.open(offline=offline)
    return opened, task.resolve(opened)


def seeds_of(recipe: Recipe, options: Options) -> list[int]:
    """The recipe's seed and the ones after it."""
    if options.seeds < 1:
        raise RecipeError(f"--seeds is {options.seeds}; give 1 or more")
    return [recipe.seed + k for k in range(options.seeds)]


def plan(recipe: Recipe, folder: Path, **settings: Any) -> list[Planned]:
    """What `execute` would do; changes nothing."""
    refuse_file(folder)
    options = Options(**settings)
    data, task = prepare(recipe, options)
    execution = Execution(recipe, folder, data, task, options, prepare_sources(recipe, options))
    planned: list[Planned] = []
    needed = 0
    for node in graph(recipe, seeds_of(recipe, options), seeds_all=options.seeds_all):
        waits = [each for ids in node.inputs.values() for each in ids if _is_pending(each, execution, recipe)]
        if waits:
            size, text = estimate_of(node.step, data, task)
            needed += size
            planned.append(Planned(node, False, f"follows {', '.join(waits)}", text))
            continue
        key = execution.key(node)
        artifact, why = execution.done(node, key)
        if artifact is not None:
            execution.artifacts[node.id] = artifact
        elif execution.continues(node, key):
            why += ", continues from its checkpoint"
        size, text = estimate_of(node.step, data, task) if artifact is None else (0, "")
        needed += size
        planned.append(Planned(node, artifact is not None, why, text))
    refuse_small_disk(folder, needed, "plan")
    return planned


def estimate_of(step: Step, data: Dataset, task: Task) -> tuple[int, str]:
    """Bytes that a step will write and cannot do without, and the sentence that says so; 0 where they are few."""
    found = step.estimate(data, task) if isinstance(step, Label) else None
    if found is None:
        return 0, ""
    rows, size = found
    features = f", and {len(step.features)} features" if isinstance(step, Label) and step.features else ""
    return size, f"{rows:,} answers, about {size_text(size)}{features}"


def _is_pending(name: str, execution: Execution, recipe: Recipe) -> bool:
    return name not in execution.artifacts and name not in recipe.models


def execute(recipe: Recipe, folder: Path, **settings: Any) -> Run:
    """Runs the steps of a recipe in `folder`, skips those that are unchanged, writes results, page and card.

    Settings are those of `Options`. A run that was stopped at any instant is continued by the same call. In processes
    that torchrun or `accelerate launch` started, all must call it alike, and all see the folder: those steps that train
    do so together, and the first process does and writes all else.
    """
    options = Options(**settings)
    begin = time.perf_counter()
    keep_freed_memory()
    with joined(options.device) as processes:
        folder = Path(processes.shared(lambda: str(folder)))
        options = replace(options, processes=processes)
        with unless_full(folder), processes.by_first(lock(folder)), offline(options.offline):
            data, task = processes.in_turn(lambda: prepare(recipe, options))
            refuse_unequal("the recipe", recipe.digest(), processes)
            sources = processes.in_turn(lambda: prepare_sources(recipe, options))
            found = [each.fingerprint for each in (data, *sources.values())]
            refuse_unequal("the data set", found, processes)
            if processes.first:
                write_whole(folder / "recipe.yaml", recipe.yaml())
            execution = Execution(recipe, folder, data, task, options, sources)
            nodes = graph(recipe, seeds_of(recipe, options), seeds_all=options.seeds_all)
            for node in nodes:
                execution.run(node)
                if processes.first:
                    write_whole(folder / "log.jsonl", _joined_log(execution, nodes))
            results = processes.shared(lambda: _finish(execution, nodes, begin))
    return Run(recipe, folder, results, execution.artifacts)


def _finish(execution: Execution, nodes: Sequence[Node], begin: float) -> dict[str, Any]:
    """Writes results, page and card; the results."""
    from decoct.report.card import write_card
    from decoct.report.page import write_page

    folder = execution.folder
    _warn_of_versions(execution)
    results = _results(execution, nodes, time.perf_counter() - begin)
    write_whole(folder / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    write_page([folder], folder / "report.html")
    write_card(folder, folder / "model_card.md")
    return results


def _left_out(artifact: Artifact) -> dict[str, str]:
    """What the step's training left out, in words; empty where it was nothing."""
    return {"left_out": str(artifact.meta["left_out"])} if "left_out" in artifact.meta else {}


def _earlier(folder: Path) -> dict[str, Any]:
    """The results that an earlier run left in this folder; empty where there are none."""
    try:
        found: dict[str, Any] = read_json(folder / "results.json", dict[str, Any])
    except (OSError, IntegrityError):
        return {}
    return found


def _times(earlier: Mapping[str, Any]) -> dict[tuple[str, int], float]:
    """Seconds that each step took when it was made, by name and seed."""
    try:
        return {(each["name"], each["seed"]): float(each["wall_s"]) for each in earlier.get("steps", [])}
    except (ValueError, KeyError, TypeError):
        return {}


def _versions() -> dict[str, str]:
    import importlib.metadata as metadata

    return {name: metadata.version(name) for name in ("torch", "onnx", "onnxruntime", "numpy", "decoct")}


def _warn_of_versions(execution: Execution) -> None:
    """Says so where steps were skipped that other versions of the libraries had made."""
    kept = [each["name"] for each in execution.steps if each["skipped"]]
    before = execution.earlier.get("versions")
    if not kept or not isinstance(before, dict):
        return
    changed = [
        f"{name} {before[name]} (now {now})" for name, now in _versions().items() if before.get(name, now) != now
    ]
    if changed:
        warnings.warn(
            f"kept, though made with {', '.join(changed)}: {', '.join(kept)}; remove their folders to make them anew",
            stacklevel=3,
        )


def _joined_log(execution: Execution, nodes: Sequence[Node]) -> str:
    lines = []
    for node in nodes:
        artifact = execution.artifacts.get(node.id)
        if artifact is None or not (artifact.folder / "log.jsonl").is_file():
            continue
        for line in (artifact.folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
            record = parse_json(line, f"{artifact.folder}/log.jsonl", dict[str, Any])
            number = {"step_number": record.pop("step")} if "step" in record else {}
            lines.append(json.dumps({"step": node.step.name, "seed": node.seed, **number, **record}))
    return "".join(line + "\n" for line in lines)


def _sources(execution: Execution) -> dict[str, Any]:
    found = {
        name: {"use": execution.recipe.sources[name].use, "fingerprint": each.fingerprint}
        for name, each in execution.sources.items()
    }
    return {"sources": found} if found else {}


def _results(execution: Execution, nodes: Sequence[Node], wall: float) -> dict[str, Any]:
    import importlib.metadata as metadata

    from decoct.training.engine import Engine

    recipe, task = execution.recipe, execution.task
    metric, direction = task.metric
    wall += sum(each["wall_s"] for each in execution.steps if each["skipped"])
    measured = gathered(nodes, execution.artifacts)
    return {
        "decoct": metadata.version("decoct"),
        "recipe": recipe.plain(defaults=False),
        "seed": recipe.seed,
        "seeds": sorted({node.seed for node in nodes}),
        "device": Engine(execution.options.device).device.type,
        "processes": execution.processes.count,
        "wall_s": round(wall, 3),
        "task": {"use": task.use, "metric": metric, "direction": direction, "item": task.answer.item},
        "data": {"use": recipe.data.use, "fingerprint": execution.data.fingerprint, **_sources(execution)},
        "models": measured["models"],
        "comparisons": measured["comparisons"],
        "compressions": measured["compressions"],
        "stores": measured["stores"],
        "steps": execution.steps,
        "machine": measured["machine"],
        "versions": _versions(),
    }
