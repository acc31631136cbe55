"""A whole epoch with labels alone, with a live teacher and with stored answers, loading and augmenting included.

    python benchmarks/epoch_cost.py [--data DIR] [--samples 2000] [--batch 64] [--rounds 7] [--threads 1]

CIFAR-10 images ($DECOCT_DATA/cifar10-subset), flipped and cropped in eight fixed views; ResNet-34 teaches ResNet-18 (of
torchvision, 32 pixels). Each way runs one epoch through the source that recipes use (batches are made ahead by a
thread) and decoct's update. Stored answers lie on the disk in float16, mapped; "warm" has them in the page cache and
opened, "cold" asks the system to forget the files and opens the store within the epoch, checksums included. Wall time,
all ways in turn, medians of paired ratios. Writes benchmarks/results/epoch_cost.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _shared import command, data_folder, interleaved, origin, paired, parser, table, write
from torch import nn

import decoct as dc
from decoct.artifact import Artifact
from decoct.data.sources import Batches
from decoct.models.given import plain_network
from decoct.objectives.base import Probe
from decoct.objectives.criterion import Criterion
from decoct.outputs import Batch, Needs, Outputs, Predictor
from decoct.teachers.frozen import Frozen
from decoct.teachers.stored import StoredTeacher
from decoct.training.clock import Clock
from decoct.training.heap import keep_freed_memory
from decoct.training.updates import Descent, Engine

VIEWS = dc.Views(count=8)


def epoch(task: Any, split: Any, batch: int, student: nn.Module, teachers: dict[str, Predictor]) -> Callable[[], None]:
    """One pass over a split, from the pixels to the optimizer's steps."""
    network = plain_network(student, "image")

    def forward(each: Batch) -> Outputs:
        outputs: Outputs = task.forward(network, each, Needs(), "student")
        return outputs

    source = Batches(split, task.collate, batch_size=batch, seed=0, augment=True, prefetch=2, views=VIEWS)
    first = next(iter(Batches(split, task.collate, batch_size=4, seed=0, augment=True, views=VIEWS)))
    with torch.no_grad():
        teacher_outputs = {role: each(first) for role, each in teachers.items()}
        probe = Probe(task, first, forward(first), teacher_outputs, {"student": student})
    objective = 0.9 * dc.KD(temperature=4.0) + 0.1 * dc.CrossEntropy() if teachers else dc.CrossEntropy()
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3, momentum=0.9)
    update = Descent(forward, teachers, Criterion.build(objective, probe), optimizer, Engine("cpu"))

    def run() -> None:
        student.train()
        for each in source:
            update([each], Clock())

    return run


def forgotten(folder: Path) -> None:
    """Asks the system to drop the files of a folder from its page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def ways(given: argparse.Namespace, folder: Path) -> dict[str, Callable[[], None]]:
    """An epoch each way, by name."""
    from torchvision.models import resnet18, resnet34

    data = dc.CIFAR10(path=given.data, limit=given.samples)
    opened = data.open()
    task = dc.ImageClassification(augment=dc.Augment(flip=True, crop=4)).resolve(opened)
    split = opened.splits["train"]
    torch.manual_seed(0)
    teacher = resnet34(num_classes=10).eval()
    dc.label(teacher, data, folder / "labels", task=task, views=VIEWS, offline=True)
    store = Artifact.load(folder / "labels")
    live = Frozen().open(teacher, task.reading("teacher"), Needs()).__enter__()
    warm = StoredTeacher().open(store, task.reading("teacher"), Needs()).__enter__()

    def student() -> nn.Module:
        torch.manual_seed(1)
        return resnet18(num_classes=10)

    def cold() -> None:
        forgotten(store.folder)
        labels = Artifact.load(store.folder, verify=False)
        with StoredTeacher().open(labels, task.reading("teacher"), Needs()) as read:
            epoch(task, split, given.batch, cold_student, {"teacher": read})()

    cold_student = student()
    return {
        "student alone": epoch(task, split, given.batch, student(), {}),
        "live teacher": epoch(task, split, given.batch, student(), {"teacher": live}),
        "stored, warm": epoch(task, split, given.batch, student(), {"teacher": warm}),
        "stored, cold": cold,
    }


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--data", type=Path)
    for name, default in {"samples": 2000, "batch": 64, "rounds": 7, "threads": 1}.items():
        made.add_argument(f"--{name}", type=int, default=default)
    given = made.parse_args()
    given.data = data_folder(given.data, "cifar10-subset")
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        times = interleaved(ways(given, Path(folder)), given.rounds)
    rows = []
    for name, own in times.items():
        ratios = [paired(own, times[base], "ratio").text() for base in ("student alone", "live teacher")]
        rows.append((name, f"{statistics.median(own):.2f}", *ratios))
    titles = ["way", "s an epoch", "÷ student alone (95 %)", "÷ live teacher (95 %)"]
    about = (
        "Aim: stored ÷ student alone at most 1.05. Cold: the page cache was asked to forget the store before the epoch."
    )
    write(
        "epoch_cost",
        [
            "# What an epoch costs",
            "",
            *table(titles, rows),
            "",
            about,
            "",
            command("epoch_cost", given),
            "",
            origin(),
            "",
        ],
    )


if __name__ == "__main__":
    main()
