"""How long a student waits for a teacher that works in a process of its own, ahead of it.

    OMP_NUM_THREADS=1 python benchmarks/ahead.py [--rounds 9] [--steps 6]

One thread each for student and teacher, on two cores. Ways, in turn: the student alone (random targets of the same
shape); the teacher online, in the same thread; in a process, asked when it is needed; in a process, asked four batches
ahead. Each turn of the last way begins with an empty queue and six untimed steps. Figures are medians of wall seconds a
step; "waits": the part of them in which the student stood still; "own CPU": CPU time of the training process over that
of the student alone, which holds what asking costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from _shared import command, interleaved, interval, origin, paired, parser, table, write
from torch import Tensor, nn

from decoct.data.base import Source
from decoct.models.base import Network
from decoct.outputs import Batch, Needs, Outputs
from decoct.teachers.frozen import Frozen
from decoct.teachers.remote.base import Ahead
from decoct.teachers.remote.process import ProcessTeacher
from decoct.teachers.remote.running_ahead import RunsAhead

CLASSES, UNTIMED = 100, 6
Say = Callable[[Batch], Tensor]


class Plain:
    """The part of a reading that a teacher uses."""

    kind = "tabular"
    reader = "teacher"

    def forward(self, network: Network, batch: Batch, needs: Needs) -> Outputs:
        """Logits."""
        return Outputs(network.module(batch.side("teacher")))


class Endless(Source):
    """A few batches that lie in memory, over and over."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches, self._at = batches, 0

    @property
    def length(self) -> None:
        return None

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self._at += 1
            yield self._batches[self._at % len(self._batches)]

    def state_dict(self) -> dict[str, int]:
        return {"at": self._at}

    def load_state_dict(self, state: Any) -> None:
        self._at = state["at"]


@dataclass
class Case:
    """A teacher, a student, and the shape of a batch."""

    name: str
    teacher: nn.Module
    student: nn.Module
    shape: tuple[int, ...]


def cases() -> list[Case]:
    """Images at 64 pixels with a teacher that is cheaper and one that is dearer than a step, and rows of a table."""
    from torchvision.models import resnet18, resnet34

    from decoct.models.base import Interface
    from decoct.models.small_resnet import SmallResNet

    torch.manual_seed(0)
    image = Interface(kind="image", shape=(3, 64, 64), outputs=CLASSES)
    images = (16, 3, 64, 64)
    rows = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, CLASSES))
    small = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    return [
        Case("ResNet-34 → ResNet-18, 16 images", resnet34(num_classes=CLASSES), resnet18(num_classes=CLASSES), images),
        Case(
            "ResNet-34 → small_resnet 8, 16 images",
            resnet34(num_classes=CLASSES),
            SmallResNet(width=8).build(image),
            images,
        ),
        Case("MLP 256-256 → MLP 32, 128 rows", rows, small, (128, 64)),
    ]


def _logits(outputs: Outputs) -> Tensor:
    assert outputs.logits is not None
    return outputs.logits


@dataclass
class Timed:
    """Wall and own CPU seconds a step, and seconds a step for which the student waited."""

    wall: float
    cpu: float
    waited: float = 0.0


class Lesson:
    """The ways of one case."""

    def __init__(self, case: Case, steps: int, stack: ExitStack) -> None:
        self.student, self.steps = case.student.train(), steps
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=1e-4)
        random = torch.Generator().manual_seed(1)
        inputs = [torch.randn(case.shape, generator=random) for _ in range(8)]
        self.batches = [Batch({"student": each, "teacher": each}) for each in inputs]
        self.targets = torch.randn(case.shape[0], CLASSES, generator=random)
        self.live = stack.enter_context(Frozen().open(case.teacher, Plain(), Needs()))  # type: ignore[arg-type]
        told = ProcessTeacher(ahead=4).open(case.teacher, Plain(), Needs())  # type: ignore[arg-type]
        self.far: Ahead = stack.enter_context(told)  # type: ignore[assignment]
        self.far(self.batches[0])
        self.found: dict[str, list[Timed]] = {name: [] for name in self.ways()}

    def ways(self) -> dict[str, Callable[[], float]]:
        """What is timed."""
        return {
            "alone": partial(self._turn, "alone", lambda batch: self.targets),
            "online": partial(self._turn, "online", lambda batch: _logits(self.live(batch))),
            "process": partial(self._turn, "process", lambda batch: _logits(self.far(batch))),
            "ahead": partial(self._turn, "ahead", lambda batch: _logits(self.far(batch))),
        }

    def _turn(self, name: str, say: Say) -> float:
        source: Source = Endless(self.batches)
        running = RunsAhead(source, [self.far]) if name == "ahead" else None
        batches = iter(source if running is None else running)
        for _ in range(UNTIMED if running is not None else 1):
            self._step(next(batches), say)
        wall, cpu, waited = time.perf_counter(), time.process_time(), self.far.counts.waited_s
        for _ in range(self.steps):
            self._step(next(batches), say)
        timed = [time.perf_counter() - wall, time.process_time() - cpu, self.far.counts.waited_s - waited]
        self.found[name].append(Timed(*(each / self.steps for each in timed)))
        if running is not None:
            running.close()
            self.far(self.batches[0])  # the worker has finished what it had begun
        return self.found[name][-1].wall

    def _step(self, batch: Batch, say: Say) -> None:
        loss = nn.functional.mse_loss(self.student(batch.side("student")), say(batch))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, default=9)
    made.add_argument("--steps", type=int, default=6)
    given = made.parse_args()
    torch.set_num_threads(1)
    rows = []
    for case in cases():
        with ExitStack() as stack:
            lesson = Lesson(case, given.steps, stack)
            times = interleaved(lesson.ways(), given.rounds)
            found = {name: each[1:] for name, each in lesson.found.items()}
        alone = [each.cpu for each in found["alone"]]
        for name, seconds in times.items():
            waits = interval(each.waited / each.wall for each in found[name])
            own = paired([each.cpu for each in found[name]], alone, "ratio")
            ratio = paired(seconds, times["alone"], "ratio")
            wall = f"{1000 * interval(seconds).median:.1f}"
            rows.append((case.name, name, wall, ratio.text(".2f"), waits.text(".1f", 100), own.text(".2f")))
    titles = ["teacher → student", "way", "ms a step", "/ alone", "waits, % of the time", "own CPU / alone"]
    lines = [
        "# A teacher in a process of its own, ahead of the student",
        "",
        "One thread each for student and teacher. Median over rounds, with its 95 % interval where there are enough.",
        "alone: no teacher; online: in the same thread; process: asked when needed; ahead: asked four batches before.",
        "waits: when the student stood still for an answer. own CPU: of the training process, without the teacher's.",
        "Where the load is above the number of cores, wall time says little: both processes wait for a core; the other",
        "two figures hold. A teacher that takes under a millisecond is best kept in the training process.",
        "",
        *table(titles, rows),
        "",
        command("ahead", given),
        "",
        origin(),
        "",
    ]
    write("ahead", lines)


if __name__ == "__main__":
    main()
