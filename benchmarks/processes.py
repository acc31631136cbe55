"""Training in two processes of one thread against one process of one thread, on the same global batches.

    python benchmarks/processes.py [--rounds 9] [--steps 4] [--batch 128]

Both ways alternate in the same two processes over gloo: with one, the second waits. A convolutional network on images
of 32 x 32 with a frozen teacher four times as wide, 0.9 KD + 0.1 cross-entropy; without and with batch normalisation,
whose statistics are taken over both. "speed-up": wall seconds of one over two, paired by round. "CPU": the same of the
busier process's CPU seconds, on which a neighbour's load weighs less; what it lacks to 2 is the cost of talking.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
from typing import Any

import torch
from _shared import command, interleaved, interval, origin, paired, parser, table, write
from torch import nn

import decoct as dc
from decoct.data.parts import own_part
from decoct.objectives.base import Probe
from decoct.objectives.criterion import Criterion
from decoct.outputs import Batch, Outputs
from decoct.training.clock import Clock
from decoct.training.heap import keep_freed_memory
from decoct.training.launching import environment
from decoct.training.processes import ONE, Processes, joined
from decoct.training.updates import Descent, Engine

CLASSES = 10


def network(width: int, normal: bool) -> nn.Module:
    """Four convolutions, two of them with a stride."""
    layers: list[nn.Module] = []
    before = 3
    for factor, stride in ((1, 1), (1, 2), (2, 1), (2, 2)):
        layers.append(nn.Conv2d(before, factor * width, 3, stride, 1))
        layers += [nn.BatchNorm2d(factor * width)] if normal else []
        layers.append(nn.ReLU())
        before = factor * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, CLASSES))


class Training:
    """Steps of one way: alone, or with all processes."""

    def __init__(self, processes: Processes, normal: bool, given: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.processes, self.steps = processes, given.steps
        self.student, self.teacher = network(16, normal), network(64, normal).eval()
        self.batch = Batch({"student": torch.randn(given.batch, 3, 32, 32)}, torch.randint(CLASSES, (given.batch,)))
        probe = Probe(
            dc.ImageClassification(raw=True),
            self.batch,
            self.say(self.student, self.batch),
            {"teacher": self.answer(self.batch)},
            {"student": self.student},
            {},
            None,
        )
        criterion = Criterion.build(0.9 * dc.KD(temperature=4) + 0.1 * dc.CrossEntropy(), probe)
        engine = Engine("cpu", processes=processes)
        engine.prepare([self.student])
        optimizer = torch.optim.SGD(self.student.parameters(), lr=0.01)
        forward = lambda each: self.say(self.student, each)  # noqa: E731
        self.update = Descent(forward, {"teacher": self.answer}, criterion, optimizer, engine)

    def say(self, module: nn.Module, batch: Batch) -> Outputs:
        """Logits."""
        return Outputs(module(batch.side("student")))

    def answer(self, batch: Batch) -> Outputs:
        """The teacher's, without gradient."""
        with torch.no_grad():
            return self.say(self.teacher, batch)

    def run(self) -> None:
        """The steps, each on the whole batch."""
        own = self.batch
        if self.processes.several:
            own = own_part(own, self.processes.rank, self.processes.count)
        for _ in range(self.steps):
            self.update([own], Clock())


def measured(processes: Processes, normal: bool, given: argparse.Namespace) -> dict[str, list[list[float]]]:
    """Wall and CPU seconds of both ways, round by round; each CPU figure is that of the busier process."""
    ways = {"one": Training(ONE, normal, given), "two": Training(processes, normal, given)}
    cpu: dict[str, list[float]] = {name: [] for name in ways}

    def turn(name: str) -> float:
        processes.wait()
        begun, used = time.perf_counter(), time.process_time()
        if processes.several and (name == "two" or processes.first):
            ways[name].run()
        used = time.process_time() - used
        processes.wait()
        wall = time.perf_counter() - begun
        cpu[name].append(processes.most([used])[0])
        return wall

    wall = interleaved({"one": lambda: turn("one"), "two": lambda: turn("two")}, given.rounds)
    return {name: [wall[name], cpu[name][-given.rounds :]] for name in ways}


def work(given: argparse.Namespace) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    keep_freed_memory()
    with joined("cpu") as processes:
        rows: list[list[Any]] = []
        for normal in (False, True):
            found = measured(processes, normal, given)
            (one, one_cpu), (two, two_cpu) = found["one"], found["two"]
            rows.append(
                [
                    "with" if normal else "without",
                    interval(one).text(".1f", 1000 / given.steps),
                    interval(two).text(".1f", 1000 / given.steps),
                    paired(one, two, "ratio").text(".2f"),
                    paired(one_cpu, two_cpu, "ratio").text(".2f"),
                ]
            )
        if processes.first:
            titles = ["batch normalisation", "one process, ms a step", "two, ms a step", "speed-up", "CPU"]
            text = ["# Two processes against one", "", *(__doc__ or "").strip().splitlines(), ""]
            text += [*table(titles, rows), "", command("processes", given), "", origin(), ""]
            write("processes", text)


def main() -> None:
    """Starts the two processes."""
    made = parser(__doc__)
    for name, default in (("rounds", 9), ("steps", 4), ("batch", 128)):
        made.add_argument(f"--{name}", type=int, default=default)
    given = made.parse_args()
    if "RANK" in os.environ:
        return work(given)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen([sys.executable, *sys.argv], env=environment(rank, 2, port, os.environ)) for rank in range(2)
    ]
    sys.exit(max(each.wait() for each in started))


if __name__ == "__main__":
    main()
