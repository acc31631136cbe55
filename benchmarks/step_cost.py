"""What a training step costs in each way, beside a step of the student alone: images, text, tables.

    python benchmarks/step_cost.py [--only image] [--pixels 64] [--batch 16] [--rounds 9] [--steps 3] [--threads 1]

Ways: the student alone (cross-entropy); 0.9 KD + 0.1 cross-entropy under a live teacher in a hand-written loop (with
decoct's loss functions, and with torch's own KL), through decoct's Descent, and through torchdistill's DistillationBox
where that package can be imported. A way is a function from a case to its step, and one line in `WAYS`. Nets: ResNet-34
and ResNet-18; encoders of 6 and 3 layers (width 384), 64 tokens; perceptrons of the shapes of a table of 23 numbers.
Weights are random and batches lie in memory: what is timed is the step. All ways take `steps` steps on the same batches
in every round, in turn; figures are medians over rounds of the time a step and of the paired ratios, with 95 %
intervals: CPU time with one thread, wall time with more. The losses of the taught ways must agree. Writes
benchmarks/results/step_cost.md.
"""

from __future__ import annotations

import argparse
import atexit
import copy
import importlib.util
import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _shared import command, cpu_or_wall, interleaved, origin, paired, parser, table, write
from torch import Tensor, nn

from decoct.artifact import Artifact, writing
from decoct.models.given import plain_network
from decoct.objectives.base import Probe
from decoct.objectives.criterion import Criterion
from decoct.objectives.cross_entropy import CrossEntropy, cross_entropy
from decoct.objectives.kd import KD, kd_loss
from decoct.outputs import Batch, Needs, Outputs, Predictor
from decoct.store.codecs.dense import DenseCodec
from decoct.store.finish import seal
from decoct.store.layout import Layout
from decoct.store.shards import write_shard
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.tabular_classification import TabularClassification
from decoct.tasks.text_classification import TextClassification
from decoct.teachers.frozen import Frozen
from decoct.teachers.stored import StoredTeacher
from decoct.training.clock import Clock
from decoct.training.heap import keep_freed_memory
from decoct.training.updates import Descent, Engine

TEMPERATURE = 4.0
Step = Callable[[Batch], Tensor]
"""One optimizer step on a batch; gives its loss."""


@dataclass(frozen=True)
class Case:
    """A teacher, a student, the task that they belong to, and batches with content keys."""

    name: str
    task: Any
    teacher: nn.Module
    student: nn.Module
    batches: list[Batch]

    def fresh(self) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
        """Copies of student (training) and teacher (frozen, eval), and an optimizer over the student."""
        student, teacher = copy.deepcopy(self.student).train(), copy.deepcopy(self.teacher).eval()
        return student, teacher.requires_grad_(False), torch.optim.SGD(student.parameters(), lr=1e-3, momentum=0.9)


class Encoder(nn.Module):
    """A BERT-like classifier that gives its logits alone."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification

        sizes: dict[str, Any] = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12}
        self.model = BertForSequenceClassification(BertConfig(num_hidden_layers=layers, **sizes))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def batch_of(inputs: Any, classes: int, first: int) -> Batch:
    """A labelled batch whose samples have the keys from `first` on."""
    count = len(inputs["input_ids"] if isinstance(inputs, Mapping) else inputs)
    keys = torch.arange(first, first + count).numpy().view("uint64")
    return Batch({"student": inputs, "teacher": inputs}, torch.randint(classes, (count,)), keys=keys, seen=keys)


def image(given: argparse.Namespace) -> Case:
    from torchvision.models import resnet18, resnet34

    task = ImageClassification(raw=True, classes=tuple(map(str, range(1000))))
    inputs = [torch.randn(given.batch, 3, given.pixels, given.pixels) for _ in range(given.steps)]
    batches = [batch_of(each, 1000, i * given.batch) for i, each in enumerate(inputs)]
    name = f"ResNet-34 → ResNet-18, {given.pixels} px, batch {given.batch}"
    return Case(name, task, resnet34(), resnet18(), batches)


def text(given: argparse.Namespace) -> Case:
    ids = [torch.randint(1000, (given.batch, 64)) for _ in range(given.steps)]
    inputs = [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in ids]
    batches = [batch_of(each, 2, i * given.batch) for i, each in enumerate(inputs)]
    name = f"encoder 6 × 384 → 3 × 384, 64 tokens, batch {given.batch}"
    task = TextClassification(raw=True, classes=("no", "yes"))
    students = Encoder(3)
    for each in students.modules():  # dropout draws numbers, and the ways could not be compared
        if isinstance(each, nn.Dropout):
            each.p = 0.0
    return Case(name, task, Encoder(6), students, batches)


def tabular(given: argparse.Namespace) -> Case:
    def net(width: int) -> nn.Module:
        first, second = nn.Linear(23, width), nn.Linear(width, width)
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(width, 2))

    steps = 100 * given.steps
    batches = [batch_of(torch.randn(256, 23), 2, i * 256) for i in range(steps)]
    task = TabularClassification(raw=True, classes=("no", "yes"), shape=(23,))
    return Case("perceptron 23-128-128-2 → 23-32-32-2, batch 256", task, net(128), net(32), batches)


CASES: dict[str, Callable[[argparse.Namespace], Case]] = {"image": image, "text": text, "tabular": tabular}


def call(model: nn.Module, inputs: Any) -> Tensor:
    logits: Tensor = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    return logits


def student_only(case: Case) -> Step:
    """The student under its labels, by hand."""
    student, _, optimizer = case.fresh()

    def step(batch: Batch) -> Tensor:
        loss = F.cross_entropy(call(student, batch.side("student")), batch.target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def plain_kl(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """KD as it is often written: NaN where a student's class is at −inf, which `kd_loss` is not."""
    log_q, p = F.log_softmax(student / temperature, dim=-1), F.softmax(teacher / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_q, p, reduction="batchmean")


def plain(case: Case) -> Step:
    """A live teacher, by hand, with torch's own KL."""
    return bare(case, plain_kl)


def bare(case: Case, divergence: Callable[..., Tensor] = kd_loss) -> Step:
    """A live teacher, by hand, with the same loss functions as decoct's update."""
    student, teacher, optimizer = case.fresh()

    def step(batch: Batch) -> Tensor:
        with torch.no_grad():
            teacher_outputs = call(teacher, batch.side("teacher"))
        logits = call(student, batch.side("student"))
        loss = 0.9 * divergence(logits, teacher_outputs, temperature=TEMPERATURE) + 0.1 * cross_entropy(
            logits, batch.target
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def online(case: Case) -> Step:
    """A live teacher, through decoct's update."""
    _, teacher, _ = case.fresh()
    return through_decoct(case, Frozen().open(teacher, case.task.reading("teacher"), Needs()))


def through_decoct(case: Case, opened: AbstractContextManager[Predictor] | None) -> Step:
    """Decoct's update under a teacher, or under labels alone."""
    student, _, optimizer = case.fresh()
    teacher_outputs = {} if opened is None else {"teacher": opened.__enter__()}  # stays open as long as the process
    network = plain_network(student, case.task.reading("student").kind)

    def forward(batch: Batch) -> Outputs:
        outputs: Outputs = case.task.forward(network, batch, Needs(), "student")
        return outputs

    with torch.no_grad():
        own = forward(case.batches[0])
    answers = {role: teacher(case.batches[0]) for role, teacher in teacher_outputs.items()}
    probe = Probe(case.task, case.batches[0], own, answers, {"student": student})
    objective = 0.9 * KD(temperature=TEMPERATURE) + 0.1 * CrossEntropy() if teacher_outputs else CrossEntropy()
    update = Descent(forward, teacher_outputs, Criterion.build(objective, probe), optimizer, Engine("cpu"))
    return lambda batch: update([batch], Clock())["loss"]


def stored(case: Case) -> Step:
    """Answers from a store on the disk, through decoct's update."""
    folder = Path(tempfile.mkdtemp(prefix="step-cost-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with Frozen().open(case.teacher.eval(), case.task.reading("teacher"), Needs()) as predict:
        answers = [Outputs(predict(batch).distribution) for batch in case.batches]
    layout = Layout.of(answers[0], DenseCodec(dtype="float32"))
    rows = [layout.encode(s, seen=b.seen, keys=b.keys) for s, b in zip(answers, case.batches)]
    shards = {0: write_shard(folder / "work" / "00000.arrow", rows, layout)}
    with writing(folder / "store", kind="store", name="labels", meta={"features": []}) as draft:
        seal(draft, folder / "work", shards, {})
    opened = StoredTeacher().open(Artifact.load(folder / "store"), case.task.reading("teacher"), Needs())
    return through_decoct(case, opened)


def alone(case: Case) -> Step:
    """The student under its labels, through decoct's update."""
    return through_decoct(case, None)


def torchdistill(case: Case) -> Step:
    """A live teacher, through torchdistill's box: its own KDLoss, forward and post-forward processes."""
    from torchdistill.core.distillation import DistillationBox

    student, teacher, _ = case.fresh()
    as_words = isinstance(case.batches[0].side("student"), Mapping)
    forward = {"forward_proc": "forward_batch_only_as_kwargs" if as_words else "forward_batch_only"}
    paths = {f"{side}_module_{key}": value for side in ("student", "teacher") for key, value in IO.items()}
    loss = {"key": "KDLoss", "kwargs": {**paths, "temperature": TEMPERATURE, "alpha": 0.1, "beta": 0.9}}
    settings = {
        "num_epochs": 1,
        "teacher": {**forward, "requires_grad": False},
        "student": forward,
        "optimizer": {"key": "SGD", "kwargs": {"lr": 1e-3, "momentum": 0.9}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}}},
    }
    box = DistillationBox(teacher, student, {}, settings, torch.device("cpu"), None, False, 1.0)
    box.pre_epoch_process(epoch=0)

    def step(batch: Batch) -> Tensor:
        box.pre_forward_process()
        found: Tensor = box.forward_process(batch.side("student"), batch.target, None)
        box.post_forward_process(found)
        return found.detach()

    return step


IO = {"path": ".", "io": "output"}
WAYS: dict[str, Callable[[Case], Step]] = {
    "student alone": student_only,
    "bare loop": bare,
    "bare loop, torch's KL": plain,
    "decoct": online,
    "decoct, stored answers": stored,
    "decoct, student alone": alone,
}
if importlib.util.find_spec("torchdistill") is not None:
    WAYS["torchdistill"] = torchdistill


def rounds_of(case: Case, given: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each way's rounds; first, the losses of the taught ways are compared."""
    steps = {name: way(case) for name, way in WAYS.items()}
    first = {name: float(step(case.batches[0])) for name, step in steps.items() if "alone" not in name}
    assert first["decoct"] == first["bare loop"], f"{case.name}: {first}"
    assert all(abs(each / first["decoct"] - 1) < 1e-4 for each in first.values()), f"{case.name}: {first}"

    def work(step: Step) -> Callable[[], None]:
        def run() -> None:
            for batch in case.batches:
                step(batch)

        return run

    clock = cpu_or_wall(given.threads)
    return interleaved({name: work(step) for name, step in steps.items()}, given.rounds, clock=clock)


def rows(case: Case, given: argparse.Namespace) -> list[tuple[str, ...]]:
    """A row a way: milliseconds a step, ratio to the student alone, ratio to the bare loop."""
    times = rounds_of(case, given)
    found = []
    for name, own in times.items():
        spent = 1e3 * statistics.median(own) / len(case.batches)
        bases = ("student alone", "decoct, student alone", "bare loop")
        ratios = [paired(own, times[base], "ratio").text() for base in bases]
        found.append((case.name, name, f"{spent:.3g}", *ratios))
        print(*found[-1], sep=" | ", flush=True)
    return found


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--only", choices=[*CASES], help="one case; all by default")
    made.add_argument("--pixels", type=int, default=64)
    made.add_argument("--batch", type=int, default=16)
    made.add_argument("--rounds", type=int, default=9)
    made.add_argument("--steps", type=int, default=3, help="a round; a hundred times as many of the small perceptrons")
    made.add_argument("--threads", type=int, default=1)
    given = made.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    found: list[tuple[str, ...]] = []
    for name, build in CASES.items():
        if given.only in (None, name):
            torch.manual_seed(0)
            found += rows(build(given), given)
    titles = ["case", "way", "ms a step", "÷ student alone (95 %)", "÷ decoct, student alone", "÷ bare loop"]
    lines = ["# What a training step costs", "", *table(titles, found), "", ABOUT, ""]
    write("step_cost", [*lines, command("step_cost", given), "", origin(), ""])


ABOUT = """\
Medians over rounds, all ways in turn on the same batches; ratios are paired by round. "bare loop" and "decoct" give the
same losses bit for bit. The aims: decoct ÷ bare loop at most 1.01 (or 50 µs), a step with stored labels ÷ student alone
at most 1.05."""


if __name__ == "__main__":
    main()
