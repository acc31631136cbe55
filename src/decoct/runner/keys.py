"""Keys: the hash of everything that a step's result depends on, and the seeds that are derived from the run's."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decoct.artifact import Artifact
from decoct.models.base import Model, identity
from decoct.spec import Spec
from decoct.steps.base import Step
from decoct.steps.learning.sources import read_by

if TYPE_CHECKING:
    from decoct.data.base import Dataset
    from decoct.tasks.base import Task


def plugin_sources(specs: Iterable[Spec]) -> dict[str, str]:
    """SHA-256 over the Python files of each package, other than decoct, whose Specs stand in `specs` at any depth."""
    packages = {type(each).__module__.partition(".")[0] for spec in specs for each in within(spec)}
    return {name: _source(name) for name in sorted(packages - {"decoct"})}


def within(value: Any) -> Iterator[Spec]:
    """Every Spec in a value, itself too."""
    if isinstance(value, Spec):
        yield value
        for name in type(value).model_fields:
            yield from within(getattr(value, name))
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from within(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from within(each)


def _source(package: str) -> str:
    found = importlib.util.find_spec(package)
    folders = [Path(each) for each in (found.submodule_search_locations or ())] if found is not None else []
    files = [path for folder in folders for path in folder.rglob("*.py")]
    if not files and found is not None and found.origin is not None and Path(found.origin).is_file():
        files = [Path(found.origin)]
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def key_of(
    step: Step,
    values: Mapping[str, Sequence[Any]],
    data: Dataset,
    task: Task,
    seed: int,
    precision: str = "no",
    sources: Mapping[str, Dataset] | None = None,
) -> str:
    """The hash of everything that a step's result depends on; `values` are its inputs by role.

    Of the further `sources` those that it reads.
    """
    settings = _settings(step)
    if "precision" in settings and settings["precision"] is None and precision != "no":
        settings["precision"] = precision
    models = [each for found in values.values() for each in found if isinstance(each, Spec)]
    parts = {
        "step": settings,
        "version": step.version,
        "inputs": {role: [_identity(each) for each in found] for role, found in values.items()},
        "data": data.fingerprint,
        "task": task.digest(),
        "seed": derive(seed, step.seed_name()) if step.learns else 0,
        "machine": _machine() if step.depends_on_machine else "",
    }
    read = read_by(step)
    if read and sources:
        parts["sources"] = {name: sources[name].fingerprint for name in read if name in sources}
    plugins = plugin_sources([step, task, *models])
    if plugins:
        parts["plugins"] = plugins
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _settings(step: Step) -> dict[str, Any]:
    data = step.keyed()
    for name, other in step.keyed_with.items():
        if not getattr(step, other):
            data[name] = type(step).model_fields[name].get_default()
    return {name: value for name, value in data.items() if name not in ("name", "inputs")}


def _identity(value: Artifact | Model) -> str:
    """The hash of what a step takes: an artifact's content, a model's Spec and the files that it reads."""
    if isinstance(value, Artifact):
        return value.hash
    return identity(value)


def _machine() -> str:
    from decoct.meters.machine import machine

    return json.dumps(machine(), sort_keys=True)


def derive(seed: int, name: str) -> int:
    """A seed in [0, 2**31) that depends on the run's seed and on `name`."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
