"""What `fit` costs over a bare hand-written loop with the same losses (0.9 KD + 0.1 cross-entropy).

    python benchmarks/overhead.py [--rounds 31] [--threads 1]

Bare loop and `fit` take turns; figures are medians over rounds, in microseconds a step: CPU time of the process with
one thread (a neighbour's load weighs little), wall time with more. Extra: the median of paired differences with its
95 % interval. "again": the bare loop against itself, what differs there is noise. "loop": fit, Descent, Criterion and a
frozen teacher around plain module calls. "task": the same through the task's own forward, as recipes run it. Losses and
weights must be equal bit for bit. Writes benchmarks/results/overhead.md; ends with 1 where "loop" costs above 1 % and
above 50 us.
"""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from _shared import Interval, command, cpu_or_wall, interleaved, origin, paired, parser, table, write
from torch import nn

from decoct.data.base import Source
from decoct.models.base import Network
from decoct.models.given import plain_network
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
ABOUT = """\
"again" is the bare loop against itself: what differs there is noise. "loop" is fit with its criterion and frozen
teacher around plain module calls, "task" the same through the task's forward. Losses and weights are equal bit for bit.
The aim is at most 1 % or 50 microseconds a step."""


class Ready(Source):
    """Batches that lie in memory."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches, self.epoch, self.batch = batches, 0, 0

    @property
    def length(self) -> int:
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
    adam: bool = False

    def optimizer(self, student: nn.Module) -> torch.optim.Optimizer:
        """AdamW or SGD over the student's parameters."""
        if self.adam:
            return torch.optim.AdamW(student.parameters(), lr=2e-3, weight_decay=1e-2)
        return torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)


class PlainReading:
    """Module calls and nothing else, in place of what a teacher is asked by."""

    kind, reader, per_pixel = "tabular", "teacher", False

    def forward(self, network: Network, batch: Batch, needs: Needs) -> Outputs:
        return Outputs(network.module(batch.inputs["teacher"]))


class Plain:
    """Module calls and nothing else, in place of a task's forward."""

    def reading(self, reader: str) -> PlainReading:
        return PlainReading()

    def forward(self, network: Network, batch: Batch, needs: Needs, side: str) -> Outputs:
        return Outputs(network.module(batch.inputs[side]))


def conv(width: int) -> nn.Module:
    """A small convolutional net for 28x28 grey images."""

    def block(a: int, b: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

    layers = [*block(1, width, 2), *block(width, 2 * width, 2), *block(2 * width, 2 * width, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))


def mlp(features: int, width: int, classes: int) -> nn.Module:
    """Two hidden layers."""
    first, second = nn.Linear(features, width), nn.Linear(width, width)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(width, classes))


def cases(steps: int) -> list[Case]:
    """A tiny net, the shapes of the tabular recipe (credit_default) with its optimizer, a small convolutional net."""
    torch.manual_seed(0)

    def batches(count: int, classes: int, *shape: int) -> list[Batch]:
        inputs = [torch.randn(*shape) for _ in range(count)]
        return [Batch({"student": x, "teacher": x}, torch.randint(0, classes, (len(x),))) for x in inputs]

    rows = TabularClassification(raw=True, classes=CLASSES, shape=(20,))
    credit = TabularClassification(raw=True, classes=("no", "yes"), shape=(23,))
    images = ImageClassification(raw=True, classes=CLASSES)
    small, large = mlp(23, 32, 2), mlp(23, 128, 2)
    some = batches(max(steps // 8, 10), 10, 64, 1, 28, 28)
    return [
        Case("MLP 20-32-32-10, batch 32", rows, mlp(20, 32, 10), mlp(20, 64, 10), batches(steps, 10, 32, 20)),
        Case("MLP 23-32-32-2, batch 256, AdamW", credit, small, large, batches(steps, 2, 256, 23), adam=True),
        Case("conv net 16-32-32, batch 64", images, conv(16), conv(32), some),
    ]


def bare(case: Case) -> tuple[float, list[float], nn.Module]:
    """Seconds, losses and the trained student of the hand-written loop."""
    student, teacher = copy.deepcopy(case.student), copy.deepcopy(case.teacher).eval()
    optimizer = case.optimizer(student)
    losses, clock = [], cpu_or_wall(torch.get_num_threads())
    begun = clock()
    for batch in case.batches:
        with torch.no_grad():
            teacher_outputs = teacher(batch.inputs["teacher"])
        logits = student(batch.inputs["student"])
        loss = 0.9 * kd_loss(logits, teacher_outputs) + 0.1 * cross_entropy(logits, batch.target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    numbers = torch.stack(losses).tolist()
    return clock() - begun, numbers, student


def fitted(case: Case, through: Any, log_every: int = 10) -> tuple[float, list[float], nn.Module]:
    """Seconds, logged losses and the trained student of `fit`."""
    student, teacher = copy.deepcopy(case.student), copy.deepcopy(case.teacher)
    optimizer = case.optimizer(student)
    network = plain_network(student, case.task.reading("student").kind)

    def forward(batch: Batch) -> Outputs:
        return through.forward(network, batch, Needs(), "student")

    with Frozen().open(teacher, through.reading("teacher"), Needs()) as teacher_outputs:
        criterion = built(case, teacher_outputs)
        update = Descent(forward, {"teacher": teacher_outputs}, criterion, optimizer, Engine("cpu"))
        state = State(student=student, optimizer=optimizer, criterion=criterion)
        source, options = Ready(case.batches), Options(log_every=log_every)
        clock = cpu_or_wall(torch.get_num_threads())
        begun = clock()
        history = fit(update, source, state, Budget(epochs=1), options=options)
        took = clock() - begun
    return took, [record["loss"] for record in history.records], student


def built(case: Case, teacher_outputs: Callable[[Batch], Outputs]) -> Criterion:
    """0.9 KD + 0.1 cross-entropy, as a criterion."""
    batch = case.batches[0]
    outputs = teacher_outputs(batch)
    probe = Probe(case.task, batch, outputs, {"teacher": outputs}, {"student": case.student})
    return Criterion.build(0.9 * KD() + 0.1 * CrossEntropy(), probe)


def check(case: Case) -> None:
    """Losses and weights of both loops must be equal bit for bit."""
    _, losses, student = bare(case)
    for through in (Plain(), case.task):
        _, logged, other = fitted(case, through, log_every=1)
        assert logged == losses, f"{case.name}: losses differ"
        pairs = zip(student.state_dict().values(), other.state_dict().values())
        assert all(torch.equal(a, b) for a, b in pairs), f"{case.name}: weights differ"


def measure(case: Case, rounds: int) -> list[tuple[str, float, Interval, float]]:
    """Rows (way, bare, extra, extra of the best rounds) in us a step."""
    ways: dict[str, Callable[[], float]] = {
        "bare": lambda: bare(case)[0],
        "again": lambda: bare(case)[0],
        "loop": lambda: fitted(case, Plain())[0],
        "task": lambda: fitted(case, case.task)[0],
    }
    scale = 1e6 / len(case.batches)
    times = {name: [scale * each for each in found] for name, found in interleaved(ways, rounds).items()}
    base = times.pop("bare")
    return [(name, statistics.median(base), paired(own, base), min(own) - min(base)) for name, own in times.items()]


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, default=31)
    made.add_argument("--steps", type=int, default=400)
    made.add_argument("--threads", type=int, default=1)
    given = made.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    missed = False
    for case in cases(given.steps):
        check(case)
        for way, base, extra, best in measure(case, given.rounds):
            ratio = (base + extra.median) / base
            rows.append((case.name, way, f"{base:.0f}", extra.text("+.0f"), f"{ratio:.3f}", f"{best:+.0f}"))
            print(*rows[-1], sep=" | ", flush=True)
            missed |= way == "loop" and min(extra.median, best) > max(50, base / 100)
    titles = ["case", "way", "bare, us a step", "extra, us (95 %)", "ratio", "extra of the best, us"]
    lines = ["# What fit costs over a bare loop", "", *table(titles, rows), "", ABOUT, ""]
    write("overhead", [*lines, command("overhead", given), "", origin(), ""])
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
