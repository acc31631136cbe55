"""Running a recipe: which steps are done already, in which folder, under which seed; results and page at the end."""

from __future__ import annotations

import contextlib
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decoct.artifact import Artifact, read_json, unless_full, write_whole
from decoct.data.index import opened
from decoct.errors import DecoctError, IntegrityError, RecipeError
from decoct.models.base import KeptModel
from decoct.models.saving import WEIGHTS
from decoct.network import offline
from decoct.recipe.graph import Node, folder_name, graph
from decoct.report.inline import run_html
from decoct.report.run_manifest import RUN_MANIFEST, RunManifest
from decoct.runner.ending import Ended, failure, versions, write_end
from decoct.runner.folders import folders_of, forget, lock, put_aside, refuse_file, set_aside, stamp, work_folder
from decoct.runner.keys import derive, key_of
from decoct.runner.logs import GrowingLog
from decoct.runner.opening import looked_at_closely, prepare_data
from decoct.runner.tracking import tracked
from decoct.runner.watching import Event, StepWatch, Watchers
from decoct.steps.base import Context, Step
from decoct.steps.labelling.step import Label
from decoct.steps.learning.saving import STOPPED
from decoct.store.sizes import refuse_small_disk, size_text
from decoct.training.engine import Engine, found_device
from decoct.training.heap import keep_freed_memory
from decoct.training.processes import ONE, Processes, joined, refuse_unequal

if TYPE_CHECKING:
    from decoct.data.base import Dataset
    from decoct.recipe.recipe import Recipe
    from decoct.runner.limiting import Limiting
    from decoct.tasks.base import Task


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

    @property
    def kept(self) -> Artifact | None:
        """The last artifact that keeps the recipe's limits; None where none does, or there are no limits."""
        path = self.results.get("limits", {}).get("kept_path")
        return self.artifacts.get(path) if path else None

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

    def _repr_html_(self) -> str:
        """What a notebook shows: the table, its sentences, quality against cost."""
        scores = {name: each.scores for name, each in self.artifacts.items() if each.scores}
        return run_html(self.results, scores)


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
        watchers: Watchers | None = None,
    ) -> None:
        self.recipe, self.folder, self.data, self.task, self.options = recipe, folder, data, task, options
        self.watchers = Watchers(options.watch) if watchers is None else watchers
        self.sources = dict(sources or {})
        self.processes = options.processes
        self.artifacts: dict[str, Artifact] = {}
        self.steps: list[dict[str, Any]] = []
        self.log = GrowingLog(folder)
        self.earlier = _earlier(folder)
        self.took = _times(self.earlier)
        self.limiting: Limiting | None = None

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
        """The whole artifact of that key that is there or was set aside; else why it must be made."""
        found, why = self._found(self.folder / node.folder, key)
        if found is None and not why.startswith("damaged"):
            before = (self._found(each, key)[0] for each in set_aside(self.folder, node.folder))
            found = next((each for each in before if each is not None), None)
        return found, "unchanged" if found is not None else why

    def _found(self, folder: Path, key: str) -> tuple[Artifact | None, str]:
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
        """The node's key, whether its artifact is there, and why it is made or left.

        What stands in its folder and was made from other things is set aside: it belongs to another recipe. A store is
        left there, since its step uses what is the same in it again.
        """
        key, folder = self.key(node), self.folder / node.folder
        artifact, why = self.done(node, key)
        if folder.is_dir() and (artifact is None or artifact.folder != folder):
            with contextlib.suppress(IntegrityError):  # damaged: its step writes over it
                if (standing := Artifact.load(folder, verify=False)).key != key and standing.kind != "store":
                    put_aside(folder)
        if artifact is not None and artifact.folder != folder:
            artifact.folder.rename(folder)
        return key, artifact is not None, why

    def begin(self, nodes: Sequence[Node]) -> None:
        """Says that a run goes on here, and sets aside what earlier runs made that is no step of this one."""
        before, own = folders_of(self.folder), {node.folder for node in nodes}
        write_whole(self.folder / RUN_MANIFEST, RunManifest("running", tuple(sorted({*before, *own}))).text())
        for name in before:
            if name not in own and (self.folder / name).is_dir():
                put_aside(self.folder / name)
        write_whole(self.folder / "recipe.yaml", self.recipe.yaml())

    def all(self, nodes: Sequence[Node], begin: float) -> dict[str, Any]:
        """Runs or skips every node; the results. `begin`: when the run began, as `time.perf_counter` has it."""
        first = self.processes.first
        if self.recipe.limits is not None:
            from decoct.runner.limiting import Limiting, refuse_blind_limits

            refuse_blind_limits(self.recipe.limits, self.looking(nodes[0]))
            self.limiting = Limiting(self.recipe.limits, nodes, self.earlier)
        if first:
            self.begin(nodes)
        for node in nodes:
            try:
                self.run(node)
            except Exception as error:
                if first:
                    self.give_up(nodes, node, error, time.perf_counter() - begin)
                raise
            if first:
                self.note(node)
        results = self.processes.shared(lambda: self.finish(nodes, time.perf_counter() - begin))
        if first:
            self.watchers({"event": "finished", "step": "", "seed": 0, "results": results})
        return results

    def finish(self, nodes: Sequence[Node], wall: float) -> dict[str, Any]:
        """Writes results, page, card and manifest; the results."""
        _warn_of_versions(self)
        return write_end(self._ended(nodes, wall))

    def give_up(self, nodes: Sequence[Node], at: Node, error: Exception, wall: float) -> None:
        """Writes results, page and card that say at which step the run failed, as far as the disk allows."""
        for node in nodes[nodes.index(at) :]:
            state, why = ("failed", str(error)) if node is at else ("not reached", "")
            took = self.took.get((node.step.name, node.seed), 0.0)
            record = {"name": node.step.name, "use": node.step.use, "seed": node.seed, "why": why}
            self.steps.append({**record, "skipped": False, "wall_s": took, "state": state})
        with contextlib.suppress(OSError, DecoctError):  # the first error is the one to be told
            write_end(replace(self._ended(nodes, wall), failed=failure(at, error)))

    def _ended(self, nodes: Sequence[Node], wall: float) -> Ended:
        return Ended(
            self.recipe,
            self.folder,
            self.data,
            self.task,
            self.sources,
            nodes,
            dict(self.artifacts),
            self.steps,
            wall,
            Engine(self.options.device).device.type,
            self.processes.count,
            self.log,
            folders=[node.folder for node in nodes],
            limits={} if self.limiting is None else self.limiting.record(),
        )

    def run(self, node: Node) -> Artifact:
        """Runs or skips one node; of several processes, the first decides."""
        key, there, why = self.processes.shared(lambda: self.decide(node))
        artifact = Artifact.load(self.folder / node.folder, verify=False) if there else None
        record = {"name": node.step.name, "use": node.step.use, "seed": node.seed, "why": why}
        if artifact is None:
            self.tell(node, event="started", why=why)
            if self.processes.first:
                self.log.write()
            begin = time.perf_counter()
            self.look_closely()
            artifact = self.context(node, key).carry_out(node.step, self.inputs(node))
            if self.processes.first:
                forget(self.folder, node.folder)
            wall = time.perf_counter() - begin
            self.steps.append({**record, **_noted(artifact), "skipped": False, "wall_s": round(wall, 3)})
            self.tell(node, event="done", wall_s=wall, **self._told(artifact))
        else:
            took = self.took.get((node.step.name, node.seed), 0.0)
            self.steps.append({**record, **_noted(artifact), "skipped": True, "wall_s": took})
            self.tell(node, event="skipped", why=why)
        if self.processes.first:
            self.tidy(node)
        self.artifacts[node.id] = artifact
        return artifact

    def note(self, node: Node) -> None:
        """Takes the log of a node that is done into the run's, and holds its artifact against the limits."""
        self.log.add(node, self.artifacts[node.id])
        if not self.steps[-1]["skipped"]:
            self.log.write()
        if self.limiting is not None:
            self.limiting.judge(node, self.artifacts, lambda: self.looking(node))

    def looking(self, node: Node) -> Context:
        """What a node's artifact is looked at in; nothing is written there."""
        folder, given = self.folder / node.folder, self.options.given
        return Context(self.task, self.data, node.step.name, folder, folder, seed=0, given=given, device="cpu")

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
            watch=StepWatch(self.watchers, node.step.name, node.seed) if self.options.listened else None,
        )

    def look_closely(self) -> None:
        """Opens again what is known from the index alone, now that a step reads it: its files are compared with their
        checksums. DataError where they hold something else."""
        again = partial(looked_at_closely, offline=self.options.offline)
        self.data = self.processes.in_turn(lambda: again("data", self.recipe.data, self.data))
        for name, each in self.sources.items():
            place, data = f"sources.{name}", self.recipe.sources[name]
            self.sources[name] = self.processes.in_turn(partial(again, place, data, each))

    def continues(self, node: Node, key: str) -> bool:
        """Whether checkpoints of this very node are there."""
        return stamp(self._work(node)) == key

    def tidy(self, node: Node) -> None:
        """Removes what a finished or killed process left beside a node's folder."""
        for left in ("work", "writing", "old"):
            shutil.rmtree(self.folder / f".{node.folder}.{left}", ignore_errors=True)

    def tell(self, node: Node, **what: Any) -> None:
        if self.processes.first:
            self.watchers({"step": node.step.name, "seed": node.seed, **what})

    def _told(self, artifact: Artifact) -> dict[str, Any]:
        """What an artifact is worth, the task's own metric first, and how large what ships of it is."""
        main, scores = self.task.metric[0], dict(artifact.scores)
        ordered = {name: scores[name] for name in (main, *(each for each in scores if each != main)) if name in scores}
        stopped = {"stopped": artifact.meta[STOPPED]} if STOPPED in artifact.meta else {}
        return {"scores": ordered, "summary": artifact.meta.get("summary"), "file_bytes": _bytes(artifact), **stopped}

    def _work(self, node: Node) -> Path:
        return self.folder / f".{node.folder}.work"

    def _lineage(self, name: str) -> dict[str, str]:
        value = self.value(name)
        if isinstance(value, Artifact):
            return {"step": value.name, "from": name, "hash": value.hash}
        return {"model": name, "digest": value.digest()}


@dataclass(frozen=True)
class Options:
    """How a run is carried out; of these only `precision` changes a result, where a step leaves its own open, and
    `callbacks`, where one stops a training.

    `device`: the recipe's unless one is given. `track`: names of trackers that see the run. `callbacks`: objects with
    `on_step` or `on_validation`; see `Callbacks`.
    """

    seeds: int = 1
    seeds_all: bool = False
    offline: bool = False
    device: str = "auto"
    precision: str = "no"
    given: Mapping[str, Any] = field(default_factory=dict)
    watch: Callable[[Event], None] = lambda event: None
    processes: Processes = ONE
    track: Sequence[str] = ()
    callbacks: Sequence[Any] = ()

    @property
    def listened(self) -> bool:
        """Whether anybody wants to see the records of training."""
        return bool(self.track or self.callbacks)


def prepare(recipe: Recipe, options: Options, *, sure: bool = True) -> tuple[Dataset, Task]:
    """Opens the data and resolves the task; `sure` as in `prepare_data`."""
    return prepare_data(recipe.data, recipe.task, offline=options.offline, sure=sure)


def prepare_sources(recipe: Recipe, options: Options, *, sure: bool = True) -> dict[str, Dataset]:
    """The further sources, opened, by name."""
    return {name: opened(each, offline=options.offline, sure=sure) for name, each in recipe.sources.items()}


def load_compiler() -> None:
    """Imports what torch's optimizers import when the first is built, which takes them seconds."""
    import torch._dynamo  # noqa: F401


def seeds_of(recipe: Recipe, options: Options) -> list[int]:
    """The recipe's seed and the ones after it."""
    if options.seeds < 1:
        raise RecipeError(f"--seeds is {options.seeds}; give 1 or more")
    return [recipe.seed + k for k in range(options.seeds)]


def plan(recipe: Recipe, folder: Path, **settings: Any) -> list[Planned]:
    """What `execute` would do; changes nothing."""
    refuse_file(folder)
    options = Options(**settings)
    data, task = prepare(recipe, options, sure=False)
    execution = Execution(recipe, folder, data, task, options, prepare_sources(recipe, options, sure=False))
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

    Settings are those of `Options`. A run that was stopped at any instant is continued by the same call. After an
    error, a missed budget too, results, page and card say at which step the run failed. In processes that torchrun or
    `accelerate launch` started, all must call it alike, and all see the folder: those steps that train do so together,
    and the first process does and writes all else.
    """
    options = Options(**{**settings, "device": settings.get("device") or recipe.device})
    found_device(options.device)
    begin = time.perf_counter()
    keep_freed_memory()
    with joined(options.device) as processes:
        folder = Path(processes.shared(lambda: str(folder)))
        options = replace(options, processes=processes)
        with unless_full(folder), processes.by_first(lock(folder)), offline(options.offline):
            data, task = processes.in_turn(lambda: prepare(recipe, options, sure=False), load_compiler)
            refuse_unequal("the recipe", recipe.digest(), processes)
            sources = processes.in_turn(lambda: prepare_sources(recipe, options, sure=False))
            found = [each.fingerprint for each in (data, *sources.values())]
            refuse_unequal("the data set", found, processes)
            names = tuple(options.track) if processes.first else ()
            with tracked(names, folder, recipe.plain(defaults=False)) as trackers:
                watchers = Watchers(options.watch, trackers, options.callbacks)
                execution = Execution(recipe, folder, data, task, options, sources, watchers)
                results = execution.all(graph(recipe, seeds_of(recipe, options), seeds_all=options.seeds_all), begin)
    return Run(recipe, folder, results, execution.artifacts)


def _noted(artifact: Artifact) -> dict[str, str]:
    """What the step's training left out and why it stopped early, in words; empty where neither was."""
    return {name: str(artifact.meta[name]) for name in ("left_out", STOPPED) if name in artifact.meta}


def _bytes(artifact: Artifact) -> int | None:
    """The size of what an artifact is for: its exported files, or its weights."""
    if artifact.kind in ("exported", "estimator"):
        from decoct.steps.shipping.candidates import target_of

        target, path = target_of(artifact)
        return sum(each.stat().st_size for each in target.files(path))
    path = artifact.folder / WEIGHTS
    return path.stat().st_size if path.is_file() else None


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


def _warn_of_versions(execution: Execution) -> None:
    """Says so where steps were skipped that other versions of the libraries had made."""
    kept = [each["name"] for each in execution.steps if each["skipped"]]
    before = execution.earlier.get("versions")
    if not kept or not isinstance(before, dict):
        return
    changed = [f"{name} {before[name]} (now {now})" for name, now in versions().items() if before.get(name, now) != now]
    if changed:
        warnings.warn(
            f"kept, though made with {', '.join(changed)}: {', '.join(kept)}; remove their folders to make them anew",
            stacklevel=3,
        )
