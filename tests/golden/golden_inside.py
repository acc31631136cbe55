"""What the golden tests take from inside of decoct: when a module moves, its new place is written here alone."""

import hashlib
import importlib.metadata as metadata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import decoct as dc
from decoct.cli import app
from decoct.meters import machine
from decoct.models.onnx_file import open_session
from decoct.models.saving import load_model
from decoct.recipe.graph import graph
from decoct.runner.keys import key_of
from decoct.spec import Choice
from decoct.steps.shipping import benchmark
from decoct.store.reading import Store

LIBRARIES = ("torch", "numpy", "onnxruntime", "scikit-learn", "transformers")
PROBED = 6
"""Samples that a model is asked about."""
STAND_IN: Mapping[str, Any] = {
    "cpu": "none",
    "architecture": "none",
    "cores": 1,
    "logical_cores": 1,
    "memory_bytes": 2**30,
    "system": "none",
    "python": "3",
    "versions": {"torch": "2"},
}
"""A machine that is the same everywhere, so that keys of benchmarks are."""


def call(*words: object) -> int:
    """The exit code of the command `decoct` with these words, in this process."""
    return app.call([str(each) for each in words])


def this_machine() -> str:
    """What decides how sums are rounded: the processor, what torch uses of it, and the libraries that add."""
    versions = [f"{name} {metadata.version(name)}" for name in LIBRARIES]
    return ", ".join([machine.machine()["cpu"], torch.backends.cpu.get_cpu_capability(), *versions])


@contextmanager
def on_the_stand_in() -> Iterator[None]:
    """Steps whose results depend on the machine see the stand-in while the body runs."""
    rooms = (machine, benchmark)
    before = [room.machine for room in rooms]
    for room in rooms:
        room.machine = lambda: dict(STAND_IN)
    try:
        yield
    finally:
        for room, function in zip(rooms, before):
            room.machine = function


def answers(artifact: dc.Artifact, data: Any) -> dict[str, Any]:
    """What a model, a file or an estimator says about the first samples of the training split, by output."""
    task = Choice("decoct.tasks").validate(artifact.json("task.json"))
    batch = task.collate(data.splits["train"], np.arange(PROBED))
    side = str(artifact.meta["side"])
    if artifact.kind == "model":
        with torch.no_grad():
            return {"logits": task.forward(load_model(artifact), batch, dc.Needs(), side).logits.tolist()}
    (path,) = artifact.folder.glob("*.onnx")
    return {name: each.tolist() for name, each in open_session(path)(task.reading(side).feed(batch)).items()}


def stored(folder: Path) -> dict[str, Any]:
    """How many answers a store holds, and the first of them."""
    store = Store.open(folder)
    outputs = store.read(store.seen[:PROBED])
    found = {"answers": len(store), "seen": store.seen[:PROBED].tolist(), "features": list(outputs.features)}
    if outputs.logits is not None:
        found["logits"] = outputs.logits.tolist()
    if outputs.top is not None:
        found |= {"ids": outputs.top.ids.tolist(), "log_probs": outputs.top.log_probs.tolist()}
    return found | {name: each.flatten(1)[:, :8].tolist() for name, each in outputs.features.items()}


@cache
def opened(data: dc.Data) -> Any:
    """A data set, read once."""
    return data.open(offline=True)


@dataclass(frozen=True)
class Known(dc.Artifact):
    """An artifact that nobody has made, known by its name alone."""

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()


def keys_of(recipe: dc.Recipe, data: Any, task: Any) -> dict[str, str]:
    """The key of each step under two seeds, and in bf16 where it takes the run's precision."""
    found = {}
    with on_the_stand_in():
        for node in graph(recipe, (recipe.seed, recipe.seed + 1)):
            values = {
                role: [recipe.models.get(name) or Known(Path(name), "model", name) for name in names]
                for role, names in node.inputs.items()
            }
            found[node.folder] = key_of(node.step, values, data, task, node.seed)
            half = key_of(node.step, values, data, task, node.seed, "bf16")
            if half != found[node.folder]:
                found[f"{node.folder} in bf16"] = half
    return found
