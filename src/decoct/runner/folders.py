"""Folders of runs: who holds one, and where a step's checkpoints are while it works."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from decoct.artifact import write_whole
from decoct.errors import RecipeError, ResourceError

LOCK = ".lock"


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds a run's folder; ResourceError names the process that holds it already. A killed holder lets go."""
    import socket

    import filelock

    refuse_file(folder)
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / ".holder"
    held = filelock.FileLock(str(folder / LOCK))
    try:
        held.acquire(timeout=0)
    except filelock.Timeout:
        who = holder.read_text(encoding="utf-8") if holder.is_file() else "another process"
        raise ResourceError(f"{folder} is held by {who}; wait until it ends, or give another --out") from None
    try:
        write_whole(holder, f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        holder.unlink(missing_ok=True)
        held.release()


def refuse_file(folder: Path) -> None:
    """RecipeError where a file stands at the path of a run's or an artifact's folder, or on the way to it."""
    for each in (folder, *folder.parents):
        if each.is_dir():
            return
        if each.exists() or each.is_symlink():
            raise RecipeError(f"out is {folder}, and {each} is a file; give a folder, one that may be new")


def remove_held(folder: Path) -> None:
    """Removes a folder that this process holds; its lock goes last, so that nobody writes there before."""
    for each in folder.iterdir():
        if each.is_dir():
            shutil.rmtree(each, ignore_errors=True)
        elif each.name != LOCK:
            each.unlink(missing_ok=True)
    (folder / LOCK).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # who came since then has begun it anew
        folder.rmdir()


def work_folder(work: Path, key: str) -> Path:
    """The folder of a step's checkpoints; those of a step with another key are dropped."""
    if stamp(work) != key:
        if work.exists():
            shutil.rmtree(work)
        write_whole(work / "key", key)
    return work


def stamp(work: Path) -> str:
    """The key of the step whose checkpoints a folder holds; empty where there are none."""
    stamp = work / "key"
    return stamp.read_text(encoding="utf-8") if stamp.is_file() else ""
