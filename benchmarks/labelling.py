"""What labelling costs: the whole label step beside the teacher's bare inference, and two workers beside one.

Bare inference is the teacher's forward pass under no_grad on the same batches, made and normalised beforehand. Two
workers of one thread against one worker of one thread: the whole step with the start of the processes, and without it
(rows per second from the first finished shard to the last).

    python benchmarks/labelling.py --rounds 7
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import _shared
import numpy as np
import torch
from torch import nn

from decoct.data.base import Dataset, Split
from decoct.data.hashing import image_keys
from decoct.models.given import given_model
from decoct.steps.base import Context
from decoct.steps.labelling.step import Label
from decoct.tasks.image_classification import ImageClassification


def images(count: int, size: int, classes: int) -> Dataset:
    """Images of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    label = np.arange(count) % classes
    names = tuple(map(str, range(classes)))
    return Dataset({"train": Split({"image": pixels, "label": label}, image_keys(pixels))}, "noise", names)


def resnet(classes: int) -> nn.Module:
    """ResNet-18 as it is used at 32 pixels: a stem of stride 1 and no pooling."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    net = resnet18(num_classes=classes)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return net.eval()


def tiny(classes: int) -> nn.Module:
    """Two layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 64), nn.ReLU(), nn.Linear(64, classes)).eval()


class Case:
    """A teacher, its data, and both ways of hearing it."""

    def __init__(self, net: nn.Module, samples: int, classes: int, **settings: Any) -> None:
        self.net, self.data = net, images(samples, 32, classes)
        self.task = ImageClassification(augment={"crop": 2, "flip": True}).resolve(self.data)
        self.step = Label(name="labels", **{"views": 1, "batch_size": 128, "shard": 512, "threads": 1, **settings})
        split, prepare = self.data.splits["train"], self.task.reading("teacher").preprocessing()
        order = np.arange(samples)
        made = [self.task.collate(split, order[i : i + 128]).side("teacher") for i in range(0, samples, 128)]
        self.batches = [prepare(each) for each in made]
        self.arrived: list[tuple[float, float]] = []

    def bare(self) -> None:
        with torch.no_grad():
            for batch in self.batches:
                self.net(batch)

    def label(self, workers: int = 1) -> float:
        """Seconds of the whole step."""
        self.arrived = []
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            given = {"net": (lambda: self.net) if workers == 1 else self.net}
            context = Context(
                task=self.task,
                data=self.data,
                name="labels",
                folder=folder / "labels",
                work=folder / "work",
                seed=0,
                given=given,
                progress=lambda done, total, text: self.arrived.append((time.perf_counter(), done)),
                device="cpu",
            )
            spec = given_model("net", self.net)
            begun = time.perf_counter()
            self.step.replace(workers=workers).run({"teacher": spec}, context)
            took = time.perf_counter() - begun
            shutil.rmtree(folder / "labels")
        return took

    def steady(self, workers: int) -> tuple[float, float]:
        """Seconds of the whole step, and rows per second from the first finished shard to the last."""
        took = self.label(workers)
        first, last = next(each for each in self.arrived if each[1] > 0), self.arrived[-1]
        return took, (last[1] - first[1]) / (last[0] - first[0])


def shares(given: argparse.Namespace) -> list[tuple[str, ...]]:
    """Part (a): bare seconds over the step's seconds, in percent."""
    torch.set_num_threads(1)
    rows = []
    for name, case in (
        ("ResNet-18, 32 px, 100 classes, float16", Case(resnet(100), given.samples, 100)),
        (
            "the same, top 16 of 1,000 classes",
            Case(resnet(1000), given.samples, 1000, keep={"use": "top_k", "k": 16}),
        ),
        ("two linear layers, 100 classes, float16", Case(tiny(100), 8 * given.samples, 100)),
    ):
        worked: dict[str, list[float]] = {"bare": [], "step": []}
        ways = {"bare": _timed(case.bare, worked["bare"]), "step": _timed(case.label, worked["step"])}
        times = _shared.interleaved(ways, given.rounds)
        wall = _shared.paired(times["bare"], times["step"], "ratio")
        work = _shared.paired(worked["bare"][1:], worked["step"][1:], "ratio")
        count = len(case.data.splits["train"])
        speed = [count / np.median(times[each]) for each in ("bare", "step")]
        shown = (f"{each:,.0f}" for each in speed)
        rows.append((name, f"{count:,}", *shown, wall.text(".1f", 100), work.text(".1f", 100)))
    return rows


def _timed(way: Callable[[], Any], worked: list[float]) -> Callable[[], float]:
    """The way with its own clock; the CPU seconds of each call go to `worked`."""

    def timed() -> float:
        begun, cpu = time.perf_counter(), time.process_time()
        way()
        worked.append(time.process_time() - cpu)
        return time.perf_counter() - begun

    return timed


def pairs(given: argparse.Namespace) -> list[tuple[str, ...]]:
    """Part (b): one worker's seconds over those of two."""
    case = Case(resnet(100), given.many, 100, shard=256)
    found: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for index in range(given.pairs):
        for workers in (1, 2) if index % 2 else (2, 1):
            found[workers].append(case.steady(workers))
    whole = _shared.paired([each[0] for each in found[1]], [each[0] for each in found[2]], "ratio")
    steady = _shared.paired([each[1] for each in found[2]], [each[1] for each in found[1]], "ratio")
    median = {workers: float(np.median([each[0] for each in times])) for workers, times in found.items()}
    return [
        ("the whole step, with the start of the processes", f"{median[1]:.1f}", f"{median[2]:.1f}", whole.text(".2f")),
        ("from the first shard to the last", "", "", steady.text(".2f")),
    ]


def main() -> None:
    made = _shared.parser(__doc__)
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--samples", type=int, default=512)
    made.add_argument("--many", type=int, default=4096)
    made.add_argument("--pairs", type=int, default=3)
    made.add_argument("--parts", default="shares,pairs")
    given = made.parse_args()
    titles = ["Teacher", "Answers", "Bare, rows/s", "Label step, rows/s", "Share by wall, %", "By CPU time, %"]
    one = _shared.table(titles, shares(given) if "shares" in given.parts else [])
    beside = pairs(given) if "pairs" in given.parts else []
    two = _shared.table(["", "One worker, s", "Two workers, s", "Ratio"], beside)
    lines = [
        "# Labelling",
        "",
        "The label step (augmented views, encoding, checksums, files written and synced) beside the teacher's bare",
        "forward passes over as many batches of 128 that lie ready in memory. One thread. Median of paired ratios with",
        "its 95 % interval where there are enough rounds.",
        "",
        *one,
        "",
        f"Two workers of one thread beside one worker of one thread, ResNet-18 at 32 px, {given.many:,} answers:",
        "",
        *two,
        "",
        _shared.command("labelling", given),
        "",
        _shared.origin(),
        "",
    ]
    _shared.write("labelling", lines)


if __name__ == "__main__":
    main()
