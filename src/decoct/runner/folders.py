"""Folders of runs: who holds one, where a step's checkpoints are while it works, what earlier runs left there."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from decoct.artifact import MANIFEST, write_whole
from decoct.errors import IntegrityError, RecipeError, ResourceError
from decoct.report.run_manifest import STEP_FOLDER, read_run_manifest

LOCK = ".lock"
EARLIER = "earlier"
"""The folder in a run's folder where artifacts stand that are of another recipe, or of seeds not asked for."""


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


def folders_of(run: Path) -> list[str]:
    """The step folders that runs have made in a folder, as its manifest says; without one, those named as steps are."""
    with contextlib.suppress(IntegrityError):
        manifest = read_run_manifest(run)
        if manifest is not None:
            return list(manifest.folders)
    return sorted(path.parent.name for path in run.glob(f"*/{MANIFEST}") if STEP_FOLDER.fullmatch(path.parent.name))


def put_aside(folder: Path) -> None:
    """Moves a step's folder to the earlier ones of its run, beside those of its name that are there."""
    earlier = folder.parent / EARLIER
    earlier.mkdir(exist_ok=True)
    names = (f"{folder.name}{number}" for number in itertools.chain([""], (f".{n}" for n in itertools.count(2))))
    folder.rename(next(place for name in names if not (place := earlier / name).exists()))


def set_aside(run: Path, name: str) -> list[Path]:
    """The folders of that name that were put aside."""
    named = re.compile(re.escape(name) + r"(\.\d+)?")
    return [path for path in sorted((run / EARLIER).glob("*")) if named.fullmatch(path.name)]


def forget(run: Path, name: str) -> None:
    """Removes what was put aside under a name, now that it is made anew."""
    for path in set_aside(run, name):
        aside = run / f".{name}.old"
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    with contextlib.suppress(OSError):
        (run / EARLIER).rmdir()
