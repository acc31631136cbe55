"""Keeping freed memory changes no number, and memory that was freed is taken again without a page fault."""

import subprocess
import sys

import pytest

CHILD = """
import resource, sys, torch
from decoct.training.heap import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
torch.manual_seed(0)
torch.set_num_threads(1)

def step():  # as a step does: activations pile up, then all are freed
    held = [torch.full((500, 1000 + i), 1.0) for i in range(20)]
    return float(sum(each.sum() for each in held))

total = sum(step() for _ in range(5))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
total += sum(step() for _ in range(20))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, repr(total))
"""
PAGES = 20 * 20 * 500 * 1000 * 4 // 4096
"""Pages that the counted steps write to, at least."""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_freed_memory_is_used_again() -> None:
    found = {}
    for way in ("default", "kept"):
        done = subprocess.run([sys.executable, "-c", CHILD, way], capture_output=True, text=True, check=True)
        faults, total = done.stdout.split()
        found[way] = int(faults), total
    assert found["kept"][1] == found["default"][1]
    assert found["kept"][0] < 0.02 * PAGES
