"""A step of KD and cross-entropy over hidden states and heads, against the same step over logits written out.

    python benchmarks/factored.py [--rounds 7] [--classes 32000] [--dtype float32] [--threads 1]

N = 256 to 2048 tokens, hidden 512 (student) and 1024 (teacher). A step is both sides' heads, the criterion and the
backward pass to the student's hidden states and weight. All ways run in turn in one process, in every round (CPU time
with one thread, else wall time); a ratio is the median over rounds of the time over that of the whole logits. Extra
memory is the rise of a fresh process's peak over its inputs. "each by itself": the terms swept one after the other, as
under a balancer.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable

import torch
from _shared import command, cpu_or_wall, interleaved, origin, paired, parser, table, write
from torch import Tensor

import decoct as dc
from decoct.meters.memory import _peak, _reset_peak
from decoct.objectives.base import Objective, Probe
from decoct.objectives.criterion import Criterion
from decoct.outputs import Batch, Dense, Factored, Head, Outputs
from decoct.training.clock import Clock

TOKENS = (256, 512, 1024, 2048)
WAYS = ("whole logits", "one sweep", "each by itself")
OBJECTIVE = 0.9 * dc.KD(temperature=2.0) + 0.1 * dc.CrossEntropy()


class Step:
    """One step at a number of tokens, in several ways."""

    def __init__(self, given: Namespace, tokens: int) -> None:
        random = torch.Generator().manual_seed(0)
        dtype = getattr(torch, given.dtype)

        def drawn(*shape: int, scale: float = 1.0) -> Tensor:
            return (scale * torch.randn(shape, generator=random)).to(dtype)

        classes = given.classes
        self.student = Factored(drawn(tokens, 512), Head(drawn(classes, 512, scale=2 * 512**-0.5)))
        self.teacher = Factored(drawn(tokens, 1024), Head(drawn(classes, 1024, scale=2 * 1024**-0.5)))
        self.leaves = [self.student.hidden.requires_grad_(), self.student.head.weight.requires_grad_()]
        self.batch = Batch({"student": torch.zeros(tokens, 1)}, torch.randint(classes, (tokens,), generator=random))
        few = slice(0, 2)
        first, teacher_outputs = Outputs(self.student).take(few, tokens), Outputs(self.teacher).take(few, tokens)
        task = dc.ImageClassification(raw=True)

        def criterion(objective: Objective) -> Criterion:
            return Criterion.build(
                objective, Probe(task, self.batch.take(few), first, {"teacher": teacher_outputs}, {})
            )

        self.whole = criterion(OBJECTIVE)
        self.single = [criterion(each) for each in OBJECTIVE.flat()]

    def run(self, way: str) -> float:
        """The loss, and its gradients on the leaves."""
        for each in self.leaves:
            each.grad = None
        dense = way == WAYS[0]
        with torch.no_grad():
            teacher_outputs = {"teacher": Outputs(Dense(self.teacher.dense()) if dense else self.teacher)}
        student = Outputs(Dense(self.student.dense()) if dense else self.student)
        parts = self.single if way == WAYS[2] else [self.whole]
        total = torch.stack([each(student, teacher_outputs, self.batch, Clock())[0] for each in parts]).sum()
        total.backward()
        return total.item()


def memory(given: Namespace, way: str, tokens: int) -> float:
    """MiB by which a fresh process's peak rises in a step."""
    words = [sys.executable, __file__, "--measure", way, "--tokens", str(tokens), "--classes", str(given.classes)]
    done = subprocess.run([*words, "--dtype", given.dtype], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def measured(given: Namespace) -> None:
    Step(Namespace(classes=64, dtype=given.dtype), 8).run(given.measure)
    step = Step(given, given.tokens)
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
    before = _reset_peak()
    step.run(given.measure)
    print(json.dumps((_peak() - before) / 2**20))


def row(given: Namespace, tokens: int) -> tuple[list[tuple[str, ...]], str]:
    step = Step(given, tokens)
    losses = {way: step.run(way) for way in WAYS}

    def runs(way: str) -> Callable[[], None]:
        def run() -> None:
            step.run(way)

        return run

    times = interleaved({way: runs(way) for way in WAYS}, given.rounds, clock=cpu_or_wall(given.threads))
    rise = {way: memory(given, way, tokens) for way in WAYS}
    gradient = given.classes * 512 * getattr(torch, given.dtype).itemsize / 2**20
    rows, short = list[tuple[str, ...]](), ""
    for way in WAYS:
        ratio = paired(times[way], times[WAYS[0]], how="ratio")
        share = rise[way] / rise[WAYS[0]]
        beside = max(rise[way] - gradient, 0.0) / (rise[WAYS[0]] - gradient)
        short = f"{tokens}: {ratio.median:.2f} and {share:.2f}" if way == WAYS[1] else short
        rows.append((str(tokens), way, ratio.text(".2f"), f"{rise[way]:.0f}", f"{share:.2f}", f"{beside:.2f}"))
        rows[-1] = (*rows[-1], f"{losses[way]:.6f}")
    return rows, short


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--classes", type=int, default=32_000)
    made.add_argument("--dtype", default="float32")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--tokens", type=int, default=0, help="one number of tokens, instead of all")
    made.add_argument("--measure", default=None, help="one way, in this process")
    given = made.parse_args()
    torch.set_num_threads(given.threads)
    if given.measure:
        measured(given)
        return
    rows: list[tuple[str, ...]] = []
    shorts = []
    for tokens in (given.tokens,) if given.tokens else TOKENS:
        more, short = row(given, tokens)
        rows += more
        shorts.append(short)
        print(short, file=sys.stderr, flush=True)
    summary = f"One sweep against whole logits, V = {given.classes:,}, time and extra memory at N = " + ", ".join(
        shorts
    )
    titles = [
        "tokens",
        "way",
        "times whole logits",
        "extra MiB",
        "of whole",
        "both without the weight's gradient",
        "loss",
    ]
    shown = Namespace(**{key: value for key, value in vars(given).items() if key not in ("measure", "tokens")})
    lines = ["# Factored outputs", "", summary + ".", "", *table(titles, rows), "", command("factored", shown), ""]
    lines += [origin(), ""]
    if given.tokens:
        print("\n".join(lines))
    else:
        write("factored", lines)


if __name__ == "__main__":
    main()
