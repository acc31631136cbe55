"""What the tests of the label step share: data, nets, and steps run by themselves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from decoct.artifact import Artifact
from decoct.data.base import Dataset
from decoct.models.given import given_model
from decoct.steps.base import Context, Step
from decoct.steps.labelling.step import Label
from decoct.store.codecs.dense import DenseCodec
from decoct.tasks.inputs.augment import Augment
from decoct.training.budget import Budget

EXACT = DenseCodec(dtype="float32")
SHORT: dict[str, Any] = {"budget": Budget(steps=6), "batch_size": 16, "log_every": 1}
CROP = Augment(crop=1, flip=True)


def context(folder: Path, data: Dataset, task: Any, name: str, **settings: Any) -> Context:
    work = folder / f".{name}.work"
    return Context(task=task, data=data, name=name, folder=folder / name, work=work, seed=3, device="cpu", **settings)


def done(step: Step, inputs: dict[str, Any], *where: Any, **settings: Any) -> Artifact:
    """Runs a step; what it left beside its artifact goes when it is done, as in a run."""
    at = context(*where, step.name, **settings)
    made = step.run(inputs, at)
    shutil.rmtree(at.work, ignore_errors=True)
    return made


def label(**settings: Any) -> Label:
    return Label(**{"name": "labels", "keep": EXACT, "batch_size": 32, "shard": 64, **settings})


class Net(nn.Module):
    """A net with a batch norm and a dropout, which answer otherwise in train mode; counts its samples."""

    def __init__(self, inputs: int = 64, classes: int = 10, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout())
        self.head = nn.Linear(12, classes)
        self.rows: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(x))
        logits: torch.Tensor = self.head(self.body(x))
        return logits


def given(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs, and the table of given objects as a factory, so that calls are counted in `module` itself."""
    return {"teacher": given_model("net", module)}, {"net": lambda: module}


def table(*, values: bool, rows: int = 60) -> Dataset:
    from decoct.data.base import Split

    drawn = np.random.default_rng(0)
    x = drawn.normal(size=(rows, 3)).astype(np.float32)
    target = {"value": x.sum(1) * 3 + 1} if values else {"label": (x.sum(1) > 0).astype(np.int64)}
    keys = drawn.integers(0, 2**63, rows).astype(np.uint64)
    whole = Split({"features": x, **target}, keys)
    splits = {"train": whole.take(np.arange(45)), "validation": whole.take(np.arange(45, rows))}
    return Dataset(splits, "table", () if values else ("no", "yes"), ("a", "b", "c"))


def texts(rows: int = 60) -> Dataset:
    from decoct.data.base import Split
    from decoct.data.hashing import text_keys

    drawn = np.random.default_rng(1)
    words = ["good", "bad", "fine", "film", "a", "very", "dull"]
    lines = [" ".join(drawn.choice(words, drawn.integers(1, 12))) + f" {i}" for i in range(rows)]
    whole = Split({"text": lines, "label": np.array([int("good" in each) for each in lines])}, text_keys(lines))
    splits = {"train": whole.take(np.arange(45)), "validation": whole.take(np.arange(45, rows))}
    return Dataset(splits, "texts", ("no", "yes"))


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
