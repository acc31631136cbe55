"""What the machine costs beside the mathematics: waiting threads, further processes, and the memory of a step.

    python benchmarks/scale_machine.py [--rounds 2] [--steps 20] [--parts threads,processes,memory]

Each figure is of fresh processes, and all ways of a table are taken in turn. "threads": a convolutional network trained
on digits by the command, with the threads that torch takes by itself (they spin while they wait), with those that the
command chooses, and with one; alone and beside a busy loop on every core. "processes": the same recipe for some steps
in one process and in two. "memory": ResNet-34 teaches ResNet-18 on 16 images of 224 pixels for two steps, by
`dc.distill` and by a loop written by hand; the peak of the whole process less what it held after its imports.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from _shared import command, interval, origin, paired, parser, table, write

from decoct.threads import CHOSEN, COUNT, WAITING, cores

RECIPE = """
version: 1
task: {{use: image_classification}}
data: {{use: digits, limit: 400}}
models:
  net: {{use: small_resnet, width: {width}}}
steps:
  - {{use: train, name: trained, inputs: {{model: net}}, budget: {{steps: {steps}}}, batch_size: 32}}
"""
SPINNING = {"GOMP_SPINCOUNT": "300000"}
"""How GNU's OpenMP waits where nobody says anything: some milliseconds at full speed each time."""


def ran(words: list[str], own: Mapping[str, str]) -> tuple[float, float]:
    """Wall seconds, and CPU seconds of the process and all that it started."""
    free = {name: each for name, each in os.environ.items() if name not in (COUNT, CHOSEN, *WAITING)}
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *words], env={**free, **own}, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def trained(width: int, steps: int, processes: int = 1, **own: str) -> tuple[float, float]:
    """Seconds of `decoct run`, from its start to its end."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "recipe.yaml"
        path.write_text(RECIPE.format(width=width, steps=steps), encoding="utf-8")
        where = ["--out", f"{name}/run", "--quiet", "--nproc", str(processes)]
        return ran(["-m", "decoct", "run", str(path), *where], own)


def beside(busy: bool, work: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """The work, where it is `busy` beside a loop on every core."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores() if busy else 0)]
    try:
        return work()
    finally:
        for each in loops:
            each.kill()
            each.wait()


def in_turn(ways: Mapping[str, Callable[[], tuple[float, float]]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """What each way gives in each round; all ways in every round."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for index in range(rounds):
        names = list(ways)
        for name in names[index % len(names) :] + names[: index % len(names)]:
            found[name].append(ways[name]())
    return found


def threads(given: argparse.Namespace) -> list[str]:
    """The table of threads."""
    names = {"torch's own": SPINNING | {COUNT: str(cores())}, "the command's": {}, "one": {COUNT: "1"}}
    ways = {
        (busy, name): lambda own=own, busy=busy: beside(busy, lambda: trained(8, 10 * given.steps, **own))
        for busy in (False, True)
        for name, own in names.items()
    }
    found = in_turn({f"{busy}/{name}": way for (busy, name), way in ways.items()}, given.rounds)
    rows = []
    for busy, name in ways:
        own, base = found[f"{busy}/{name}"], found[f"{busy}/torch's own"]
        wall, cpu = ([each[place] for each in own] for place in (0, 1))
        ratios = (paired(each, [pair[place] for pair in base], "ratio") for place, each in enumerate((wall, cpu)))
        shown = [each.text(".2f") for each in ratios]
        middle = [interval(each).text(".1f") for each in (wall, cpu)]
        rows.append(["busy" if busy else "free", name, *middle, *shown])
    titles = ["cores", "threads", "wall, s", "CPU, s", "wall, ratio", "CPU, ratio"]
    return table(titles, rows)


def processes(given: argparse.Namespace) -> list[str]:
    """The table of processes."""
    ways = {str(count): lambda count=count: trained(4, given.steps, count, **{COUNT: "1"}) for count in (1, 2)}
    found = in_turn(ways, given.rounds)
    one, two = ([each[0] for each in found[name]] for name in ("1", "2"))
    more = paired(two, one).text("+.1f")
    used = [f"{statistics.median(each[1] for each in found[name]):.1f}" for name in ("1", "2")]
    titles = ["steps", "one process, s", "two, s", "difference, s", "CPU of one, s", "CPU of two, s"]
    return table(titles, [[given.steps, interval(one).text(".1f"), interval(two).text(".1f"), more, *used]])


def memory(given: argparse.Namespace) -> list[str]:
    """The table of memory."""
    found: dict[str, list[float]] = {"by hand": [], "dc.distill": []}
    for _ in range(given.rounds):
        for way, peaks in found.items():
            with tempfile.TemporaryDirectory() as name:
                file = Path(name) / "peak.json"
                ran([__file__, "--way", way, "--file", str(file)], {COUNT: "1"})
                peaks.append(json.loads(file.read_text(encoding="utf-8")))
    bare = found["by hand"]
    rows = [[w, interval(p).text(",.0f", 1e-6), paired(p, bare, "ratio").text(".2f")] for w, p in found.items()]
    return table(["step", "memory, MB", "ratio"], rows)


def step(way: str) -> int:
    """Bytes at the peak of this process, less those after its imports."""
    import psutil
    import torch
    import torch._dynamo  # as either way's optimizer does
    from torch.utils.data import DataLoader, TensorDataset
    from torchvision.models import resnet18, resnet34

    import decoct as dc

    for name in ("distill", "Distill", "KD", "AdamW"):
        getattr(dc, name)
    before = psutil.Process().memory_info().rss
    torch.manual_seed(0)
    loader: Any = DataLoader(TensorDataset(torch.randn(16, 3, 224, 224), torch.arange(16) % 10), batch_size=16)
    teacher, student = resnet34(num_classes=10), resnet18(num_classes=10)
    if way == "by hand":
        by_hand(teacher, student, loader, 2)
    else:
        with tempfile.TemporaryDirectory() as name:
            budget = dc.Budget(steps=2)
            dc.distill(teacher=teacher, student=student, train=loader, budget=budget, out=name, select="last")
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def by_hand(teacher: Any, student: Any, loader: Any, epochs: int) -> None:
    """0.9 KD + 0.1 cross-entropy, as few lines as it takes."""
    import torch
    from torch.nn import functional as F

    teacher.eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters())
    for _ in range(epochs):
        for images, target in loader:
            with torch.no_grad():
                soft = (teacher(images) / 4).log_softmax(-1)
            logits = student(images)
            kd = F.kl_div((logits / 4).log_softmax(-1), soft, reduction="batchmean", log_target=True)
            loss = 0.9 * 16 * kd + 0.1 * F.cross_entropy(logits, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, default=2)
    made.add_argument("--steps", type=int, default=20)
    made.add_argument("--parts", default="threads,processes,memory")
    made.add_argument("--way", help=argparse.SUPPRESS)
    made.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = made.parse_args()
    if given.way is not None:
        given.file.write_text(json.dumps(step(given.way)), encoding="utf-8")
        return
    del given.way
    ways = {"threads": threads, "processes": processes, "memory": memory}
    tables = []
    for name in given.parts.split(","):
        tables += [f"## {name.capitalize()}", "", *ways[name](given), ""]
    about = (__doc__ or "").strip().splitlines()
    text = [
        "# Threads, processes and memory",
        "",
        *about,
        "",
        *tables,
        command("scale_machine", given),
        "",
        origin(),
        "",
    ]
    write("scale_machine", text)


if __name__ == "__main__":
    main()
