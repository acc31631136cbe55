"""Labels a data set in forked processes that are killed at every instant; prints one JSON object.

Each run is a fork that writes down how many rows its teacher was asked for, before it answers. It kills itself at its
n-th sync, rename or removal, or in the teacher's n-th call.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch

from decoct.data.base import Dataset
from decoct.data.digits import Digits
from decoct.models.given import given_model
from decoct.runner.apply import alone
from decoct.steps.labelling.step import Label
from decoct.store.codecs.dense import DenseCodec
from decoct.tasks.image_classification import ImageClassification
from kill_recipe import Killer, fork, killed
from tiny import tree

SAMPLES, VIEWS, SHARD = 40, 2, 32
STEP = Label(
    name="labels", views=VIEWS, batch_size=16, shard=SHARD, mix={"use": "mixup"}, keep=DenseCodec(dtype="float32")
)


class Mortal(torch.nn.Module):
    """Notes the rows of each call in a file; dies in call `dies_at` of all that the file knows, once each."""

    def __init__(self, notes: Path, dies_at: tuple[int, ...] = ()) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        self.notes, self.dies_at = str(notes), dies_at

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with open(self.notes, "a", encoding="utf-8") as file:
            file.write(f"{len(x)}\n")
            file.flush()
            calls = len(Path(self.notes).read_text().splitlines())
        if calls in self.dies_at:
            os.kill(os.getpid(), 9)
        logits: torch.Tensor = self.inner(x)
        return logits


def prepared() -> tuple[Dataset, ImageClassification]:
    data = Digits(limit=SAMPLES).open()
    return data, ImageClassification(augment={"crop": 1}).resolve(data)


def run(folder: Path, dies_at: tuple[int, ...] = (), workers: int = 1) -> None:
    """One call of `label`; the store in `folder`/labels, the notes beside it."""
    data, task = prepared()
    module = Mortal(folder / "notes", dies_at)
    spec = given_model("net", torch.nn.Sequential(torch.nn.Flatten(), module.inner[1]))
    step = STEP.replace(workers=workers, threads=1)
    spec = spec.replace(type=f"{Mortal.__module__}.{Mortal.__qualname__}")
    given = {"net": (lambda: module) if workers == 1 else module}
    alone(step, {"teacher": spec}, folder / "labels", data, task, 0, given=given)


def rows(folder: Path) -> int:
    return sum(map(int, (folder / "notes").read_text().split()))


def digest(folder: Path) -> dict[str, str]:
    found = tree(folder)
    return {name: each for name, each in found.items() if name not in ("notes", ".labels.applying/.lock")}


def attempt(folder: Path, job: Callable[[], None]) -> bool:
    """Whether the run was killed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "notes").touch()
    return killed(fork(job))


def at_each_operation(root: Path, wanted: dict[str, str]) -> dict[str, Any]:
    def count() -> None:
        killer = Killer(None)
        killer.install()
        run(root / "count")
        (root / "kinds").write_text(json.dumps(killer.seen))

    assert not attempt(root / "count", count)
    kinds = json.loads((root / "kinds").read_text())
    same, asked = [], []
    for n in range(1, len(kinds) + 1):
        folder = root / f"each-{n}"

        def dies(n: int = n, folder: Path = folder) -> None:
            Killer(n).install()
            run(folder)

        assert attempt(folder, dies), (n, kinds[n - 1])
        assert not attempt(folder, partial(run, folder))
        same.append(digest(folder) == wanted)
        asked.append(rows(folder))
    return {"kinds": kinds, "same": same, "asked": asked}


def in_calls(root: Path, wanted: dict[str, str]) -> dict[str, Any]:
    """Several kills one after the other at random calls of the teacher."""
    drawn = random.Random(0)
    same, asked, kills = [], [], []
    for trial in range(6):
        folder = root / f"calls-{trial}"
        count = 0
        for _ in range(drawn.randint(1, 4)):
            ahead = len((folder / "notes").read_text().splitlines()) if (folder / "notes").exists() else 0
            count += attempt(folder, partial(run, folder, (ahead + drawn.randint(1, 4),)))
        assert not attempt(folder, partial(run, folder))
        kills.append(count)
        same.append(digest(folder) == wanted)
        asked.append(rows(folder))
    return {"kills": kills, "same": same, "asked": asked}


def in_workers(root: Path, wanted: dict[str, str]) -> dict[str, Any]:
    """Two workers, of which one dies in two of its calls."""
    folder = root / "workers"
    folder.mkdir()
    (folder / "notes").touch()
    run(folder, (2, 5), workers=2)
    return {"same": digest(folder) == wanted, "asked": rows(folder)}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "first").mkdir()
        run(root / "first")
        wanted = digest(root / "first")
        total = VIEWS * len(np.unique(prepared()[0].splits["train"].keys))
        found = {
            "total": total,
            "whole": rows(root / "first"),
            "names": sorted(wanted),
            "each": at_each_operation(root, wanted),
            "calls": in_calls(root, wanted),
            "workers": in_workers(root, wanted),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
