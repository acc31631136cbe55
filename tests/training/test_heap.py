"""Keeping freed memory changes no number and gives fewer page faults."""

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
total = 0.0
for _ in range(30):
    a = torch.randn(1000, 1000)
    total += float((a * 2).sum())
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt, repr(total))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_freed_memory_is_used_again() -> None:
    found = {}
    for way in ("default", "kept"):
        done = subprocess.run([sys.executable, "-c", CHILD, way], capture_output=True, text=True, check=True)
        faults, total = done.stdout.split()
        found[way] = int(faults), total
    assert found["kept"][1] == found["default"][1]
    assert found["kept"][0] <= found["default"][0]
