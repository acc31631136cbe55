"""What `fit` costs over a bare hand-written loop with the same losses (0.9 KD + 0.1 cross-entropy).

    python benchmarks/overhead.py [--rounds 31] [--threads 1]

Bare loop and `fit` alternate; figures are medians over rounds, in microseconds a step: CPU time of the process with
one thread (a neighbour's load does not count), wall time with more. "loop": fit, Descent, Criterion and a frozen
teacher around plain module calls. "task": the same through the task's own forward, as recipes run it. Losses and
weights must be equal bit for bit. Prints Markdown rows; ends with 1 where "loop" costs above 1 % and above 50 us.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from decoct.data.base import Source
from decoct.objectives.base import Probe
from decoct.objectives.criterion import Criterion
from decoct.objectives.cross_entropy import CrossEntropy, cross_entropy
from decoct.objectives.kd import KD, kd_loss
from decoct.outputs import Batch, Needs, Outputs
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.tabular_classification import TabularClassification
from decoct.teachers.frozen import Frozen
from decoct.training.budget import Budget
from decoct.training.fit import Options, State, fit
from decoct.training.updates import Descent, Engine

CLASSES = tuple("abcdefghij")


def clock() -> float:
    """Seconds of CPU with one thread, of the wall with more."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


class Ready(Source):
    """Batches that lie in memory."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches, self.epoch, self.batch = batches, 0, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches[self.batch :]:
            self.batch += 1
            yield batch
        self.epoch, self.batch = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.epoch, self.batch = state["epoch"], state["batch"]


@dataclass(frozen=True)
class Case:
    """A student, a teacher, batches, and the task they belong to."""

    name: str
    task: Any
    student: nn.Module
    teacher: nn.Module
    batches: list[Batch]


@dataclass(frozen=True)
class Plain:
    """Module calls and nothing else, in place of a task's forward."""

    task: Any

    def forward(self, model: nn.Module, batch: Batch, needs: Needs, side: str) -> Outputs:
        return Outputs(logits=model(batch.inputs[side]))


def conv(width: int) -> nn.Module:
    """A small convolutional net for 28x28 grey images."""

    def block(a: int, b: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

    layers = [*block(1, width, 2), *block(width, 2 * width, 2), *block(2 * width, 2 * width, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))


def mlp(width: int) -> nn.Module:
    """Two hidden layers on 20 features."""
    return nn.Sequential(nn.Linear(20, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def cases(steps: int) -> list[Case]:
    """(a) a tiny MLP, (b) a small convolutional net."""
    torch.manual_seed(0)

    def batches(count: int, *shape: int) -> list[Batch]:
        inputs = [torch.randn(*shape) for _ in range(count)]
        return [Batch({"student": x, "teacher": x}, torch.randint(0, 10, (len(x),))) for x in inputs]

    rows = TabularClassification(raw=True, classes=CLASSES, shape=(20,))
    images = ImageClassification(raw=True, classes=CLASSES)
    return [
        Case("MLP 20-32-32-10, batch 32", rows, mlp(32), mlp(64), batches(steps, 32, 20)),
        Case("conv net 16-32-32, batch 64", images, conv(16), conv(32), batches(max(steps // 8, 10), 64, 1, 28, 28)),
    ]


def bare(case: Case) -> tuple[float, list[float], nn.Module]:
    """Seconds, losses and the trained student of the hand-written loop."""
    student, teacher = copy.deepcopy(case.student), copy.deepcopy(case.teacher).eval()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    losses = []
    begun = clock()
    for batch in case.batches:
        with torch.no_grad():
            taught = teacher(batch.inputs["teacher"])
        logits = student(batch.inputs["student"])
        loss = 0.9 * kd_loss(logits, taught) + 0.1 * cross_entropy(logits, batch.target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    numbers = torch.stack(losses).tolist()
    return clock() - begun, numbers, student


def fitted(case: Case, through: Any, log_every: int = 10) -> tuple[float, list[float], nn.Module]:
    """Seconds, logged losses and the trained student of `fit`."""
    student, teacher = copy.deepcopy(case.student), copy.deepcopy(case.teacher)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)

    def forward(batch: Batch) -> Outputs:
        return through.forward(student, batch, Needs(), "student")

    with Frozen().open(teacher, through, Needs(), side="teacher") as taught:
        criterion = built(case, taught)
        update = Descent(forward, {"teacher": taught}, criterion, optimizer, Engine("cpu"))
        state = State(student=student, optimizer=optimizer, criterion=criterion)
        source, options = Ready(case.batches), Options(log_every=log_every)
        begun = clock()
        history = fit(update, source, state, Budget(epochs=1), options=options)
        took = clock() - begun
    return took, [record["loss"] for record in history.records], student


def built(case: Case, taught: Callable[[Batch], Outputs]) -> Criterion:
    """0.9 KD + 0.1 cross-entropy, as a criterion."""
    batch = case.batches[0]
    said = taught(batch)
    probe = Probe(case.task, batch, said, {"teacher": said}, {"student": case.student})
    return Criterion.build(0.9 * KD() + 0.1 * CrossEntropy(), probe)


def check(case: Case) -> None:
    """Losses and weights of both loops must be equal bit for bit."""
    _, losses, student = bare(case)
    for through in (Plain(case.task), case.task):
        _, logged, other = fitted(case, through, log_every=1)
        assert logged == losses, f"{case.name}: losses differ"
        pairs = zip(student.state_dict().values(), other.state_dict().values())
        assert all(torch.equal(a, b) for a, b in pairs), f"{case.name}: weights differ"


def measure(case: Case, rounds: int) -> list[tuple[str, float, float, float]]:
    """Rows (way, bare, extra, extra of the best rounds) in us a step; extra is the median of paired differences.

    "again" is the bare loop against itself: what differs there is noise.
    """
    ways: dict[str, Callable[[], float]] = {
        "again": lambda: bare(case)[0],
        "loop": lambda: fitted(case, Plain(case.task))[0],
        "task": lambda: fitted(case, case.task)[0],
    }
    times: dict[str, list[float]] = {name: [] for name in ("bare", *ways)}
    for _ in range(rounds):
        times["bare"].append(bare(case)[0])
        for name, way in ways.items():
            times[name].append(way())
    scale = 1e6 / len(case.batches)
    rows = []
    for name in ways:
        base = statistics.median(times["bare"]) * scale
        extra = statistics.median(b - a for a, b in zip(times["bare"], times[name])) * scale
        rows.append((name, base, extra, (min(times[name]) - min(times["bare"])) * scale))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    where = f"{platform.machine()}, {options.threads} thread(s), torch {torch.__version__}"
    print("| case | way | bare, us a step | extra, us | ratio | extra of the best, us | machine | date |")
    print("|---|---|---|---|---|---|---|---|")
    missed = False
    for case in cases(options.steps):
        check(case)
        for way, base, extra, best in measure(case, options.rounds):
            ratio, today = (base + extra) / base, datetime.date.today()
            print(
                f"| {case.name} | {way} | {base:.0f} | {extra:+.0f} | {ratio:.3f} | {best:+.0f} | {where} | {today} |"
            )
            missed |= way == "loop" and min(extra, best) > max(50, base / 100)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
