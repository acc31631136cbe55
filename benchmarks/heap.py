"""What keeping freed memory gives a training step on the CPU: the same steps in fresh processes, with and without.

    python benchmarks/heap.py [--rounds 5] [--steps 20]

Alternates the two; prints the medians over rounds of the median step's CPU time, and the share that the kernel took.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from _shared import command, origin, paired, parser, table

CHILD = """
import os, statistics, sys, time
import torch, torch.nn.functional as F
from decoct.models.base import Interface
from decoct.models.small_mobilenet import SmallMobileNet
from decoct.training.heap import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "kept":
    assert keep_freed_memory()
model = SmallMobileNet().build(Interface(kind="image", shape=(1, 28, 28), outputs=10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
times = []
before = os.times()
for _ in range(int(sys.argv[2])):
    begin = time.process_time()
    F.cross_entropy(model(torch.randn(128, 1, 28, 28)), torch.randint(0, 10, (128,))).backward()
    optimizer.step()
    optimizer.zero_grad()
    times.append(time.process_time() - begin)
after = os.times()
system, user = after.system - before.system, after.user - before.user
print(statistics.median(times) * 1e3, system / (system + user))
"""


def once(way: str, steps: int) -> tuple[float, float]:
    done = subprocess.run([sys.executable, "-c", CHILD, way, str(steps)], capture_output=True, text=True, check=True)
    step, share = done.stdout.split()
    return float(step), float(share)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--steps", type=int, default=20)
    given = made.parse_args()
    found: dict[str, list[tuple[float, float]]] = {"default": [], "kept": []}
    for _ in range(given.rounds):
        for way, each in found.items():
            each.append(once(way, given.steps))
    rows = []
    for way, each in found.items():
        step, share = (statistics.median(column) for column in zip(*each))
        rows.append((way, f"{step:.1f}", f"{share:.0%}"))
    print("\n".join(table(["way", "CPU ms a step", "kernel's share"], rows)))
    kept, default = ([step for step, _ in found[way]] for way in ("kept", "default"))
    print(f"\nkept / default, median of paired ratios: {paired(kept, default, 'ratio').median:.2f}")
    print(f"\n{command('heap', given)}\n\n{origin()}")


if __name__ == "__main__":
    main()
