"""What the C library does with freed memory while a network trains on the CPU."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGEST_FROM_HEAP = 32 * 1024**2
"""The most that glibc lets M_MMAP_THRESHOLD be on 64 bits."""
KEPT = 1024**3
STEP = 64 * 1024**2


def keep_freed_memory() -> bool:
    """Tells glibc to keep up to 1 GiB of freed memory for the next step; False where the C library is another.

    A training step frees its activations and asks for the same again. By default glibc gives them back to the kernel
    and the kernel clears every page anew, which took a quarter of a training process's time where this was measured
    (benchmarks/results/heap.md). No number changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((M_MMAP_THRESHOLD, LARGEST_FROM_HEAP), (M_TRIM_THRESHOLD, KEPT), (M_TOP_PAD, STEP))
    taken = [mallopt(name, value) for name, value in settings]
    return taken == [1, 1, 1]
