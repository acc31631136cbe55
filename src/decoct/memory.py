"""Memory: how much is free, and what is refused because it would not fit.

Sizes are asked before they are taken: of a file before it is read, of a network before its weights are made.
"""

from __future__ import annotations

import contextlib
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from decoct.errors import ResourceError

Width = Annotated[int, Field(gt=0, le=65_536)]
"""How many numbers a layer gives; far beyond what trains, so that no slip of the hand is built."""
Depth = Annotated[int, Field(gt=0, le=1024)]
"""How many layers there are of a kind."""
Side = Annotated[int, Field(gt=0, le=16_384)]
"""Pixels along one side of an image."""
MOST_STAGES = 16
"""Stages of a network; widths double from one to the next."""

CGROUP = Path("/sys/fs/cgroup")
FULL = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")
"""What torch and its kin say where memory is full, in errors that are no MemoryError."""


def free_memory() -> int:
    """Bytes that this process may still take: what the machine has free, within the limits set on the process."""
    import psutil

    found = [int(psutil.virtual_memory().available)]
    if sys.platform != "win32":
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            found.append(limit - int(psutil.Process().memory_info().vms))
    return max(0, min(found + _left_in_group()))


def require_memory(needed: float, what: str, advice: str) -> None:
    """ResourceError where `needed` bytes are not free; `what` would take them, `advice` says what to do.

    >>> require_memory(1 << 60, "data.size=10000000", "lower it")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    decoct.errors.ResourceError: data.size=10000000 would take 1,152,921,505 GB of memory, ... GB are free; lower it
    """
    free = free_memory()
    if needed > free:
        raise ResourceError(f"{what} would take {gigabytes(needed)} of memory, {gigabytes(free)} are free; {advice}")


def require_unzipped(path: Path) -> None:
    """ResourceError where the members of a zip file would not fit into memory, by the sizes that it gives them.

    zipfile.BadZipFile where it is none.
    """
    with zipfile.ZipFile(path) as archive:
        size = sum(each.file_size for each in archive.infolist())
    require_memory(size, f"{path}: unpacked it", "get the file again from where you trust it")


def gigabytes(size: float) -> str:
    """Bytes in GB, as people read them.

    >>> gigabytes(1_500_000_000), gigabytes(2e12)
    ('1.5 GB', '2,000 GB')
    """
    number = size / 1e9
    return f"{number:,.0f} GB" if number >= 100 else f"{number:.2g} GB"


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory is full: a MemoryError, or what torch raises in its place.

    >>> lacks_memory(MemoryError()), lacks_memory(RuntimeError("CUDA out of memory. Tried ..."))
    (True, True)
    >>> lacks_memory(RuntimeError("shape"))
    False
    """
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(each in str(error) for each in FULL)
    )


def memory_full(error: BaseException, where: str = "") -> ResourceError:
    """The ResourceError for an error that says that memory is full; `where` names what was being done."""
    reason = str(error).strip().partition("\n")[0]
    return ResourceError(
        f"{where + ': ' if where else ''}the memory is full{f' ({reason})' if reason else ''}; take a smaller batch, "
        "model or input, or less data, or a machine with more memory"
    )


@contextlib.contextmanager
def within_memory(where: str) -> Iterator[None]:
    """Turns what the body raises where memory is full into a ResourceError that says `where`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        raise memory_full(error, where) from error


def _left_in_group() -> list[int]:
    """What the control group of the process leaves, where it sets a limit; pages of files that can go do not count."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        most, taken = _number(CGROUP / limit), _number(CGROUP / used)
        if most is not None and taken is not None:
            return [most - taken + _pages_of_files((CGROUP / limit).with_name("memory.stat"))]
    return []


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdigit() else None


def _pages_of_files(path: Path) -> int:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return 0
    found = [line.split() for line in lines if line.startswith(("inactive_file ", "total_inactive_file "))]
    return max((int(number) for _, number in found), default=0)
