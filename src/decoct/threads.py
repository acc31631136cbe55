"""Threads: how many cores there are for this process, and how torch's threads use and await them.

The command and what it starts choose by themselves, before torch is loaded (`choose`); `import decoct` changes nothing
of a program's threads. What the user set, in the environment or by `torch.set_num_threads`, always stays.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator, MutableMapping
from pathlib import Path

COUNT = "OMP_NUM_THREADS"
CHOSEN = "DECOCT_THREADS"
"""The environment variable with the number that the command chose; absent where the user did."""
WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
"""Environment variables by which OpenMP's threads sleep while they wait, so that others have the core meanwhile."""
SMALL = 100_000_000
"""Multiply-accumulates of a training step, both ways, below which a second thread costs more than it brings."""
CGROUP, GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cores(root: Path = CGROUP, groups: Path = GROUPS) -> int:
    """Cores that this process may use at once: those that it may run on, no more than its control group's quota.

    >>> cores() >= 1
    True
    """
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    share = quota(root, groups)
    return allowed if share is None else max(1, min(allowed, math.floor(share)))


def quota(root: Path = CGROUP, groups: Path = GROUPS) -> float | None:
    """Cores' worth of time that the control groups of this process, and those above them, leave it; None: no limit."""
    found = [each for folder in _folders(root, groups) if (each := _share(folder)) is not None]
    return min(found, default=None)


def choose(environment: MutableMapping[str, str] = os.environ, count: int | None = None) -> None:
    """Sets how many threads OpenMP's libraries take, `count` or as many as `cores`, and that they wait asleep.

    Works on what is loaded later, and on processes that are started. Numbers and ways of waiting that the user gave
    stay.

    >>> made = {}
    >>> choose(made, 3)
    >>> made["OMP_NUM_THREADS"], made["OMP_WAIT_POLICY"]
    ('3', 'passive')
    >>> choose(own := {"OMP_NUM_THREADS": "8", "OMP_WAIT_POLICY": "active"}, 3)
    >>> own
    {'OMP_NUM_THREADS': '8', 'OMP_WAIT_POLICY': 'active'}
    """
    if not any(environment.get(name) for name in WAITING):
        environment.update(WAITING)
    if not environment.get(COUNT) or chosen(environment) is not None:
        environment[COUNT] = environment[CHOSEN] = str(cores() if count is None else count)


def chosen(environment: MutableMapping[str, str] = os.environ) -> int | None:
    """The number of threads that the command chose; None where the user did, or nobody.

    >>> chosen({"OMP_NUM_THREADS": "2", "DECOCT_THREADS": "2"}), chosen({"OMP_NUM_THREADS": "1", "DECOCT_THREADS": "2"})
    (2, None)
    """
    number = environment.get(CHOSEN, "")
    return int(number) if number.isdigit() and environment.get(COUNT) == number else None


def is_ours() -> bool:
    """Whether torch has several threads here, as many as the command chose, so that a small step may have fewer.

    Where MKL is at work torch takes no more than there are whole cores, of which each may count as two.
    """
    import psutil
    import torch

    number, now = chosen(), torch.get_num_threads()
    return number is not None and now > 1 and now in (number, min(number, psutil.cpu_count(logical=False) or number))


@contextlib.contextmanager
def in_threads(count: int | None) -> Iterator[None]:
    """Torch works with so many threads while the body runs; None: with as many as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _folders(root: Path, groups: Path) -> Iterator[Path]:
    """The folders of this process's groups that can limit processor time, each followed by those above it."""
    for line in _text(groups).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        tops = [root] if not controllers else [root / controllers, root / "cpu"]
        parts = [each for each in path.split("/") if each not in ("", "..")]
        for top in tops:
            for length in range(len(parts), -1, -1):
                yield top.joinpath(*parts[:length])


def _share(folder: Path) -> float | None:
    """Quota over period of one group, of version 2 or 1; None where it sets none."""
    words = _text(folder / "cpu.max").split()
    if not words:
        words = [*_text(folder / "cpu.cfs_quota_us").split(), *_text(folder / "cpu.cfs_period_us").split()]
    if len(words) != 2 or not all(each.isdigit() for each in words) or int(words[1]) == 0:
        return None
    return int(words[0]) / int(words[1]) or None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
