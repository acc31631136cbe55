"""Arrays kept in the cache folder beside a data set of the index: what was made of its columns."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from decoct.artifact import Artifact, damaged, writing
from decoct.data.files import others_may_write
from decoct.errors import DecoctError


def kept_arrays(folder: Path, names: Sequence[str], count: int) -> list[np.ndarray] | None:
    """The arrays of a folder, mapped, all but the first of `count` numbers; None where they are not whole there."""
    try:
        if not folder.is_dir():
            return None
        Artifact.load(folder, verify=False)
        if others_may_write(folder) or damaged(folder):
            raise ValueError("it is not what was written")
        found = [np.asarray(np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False)) for name in names]
        if any(len(each) != count for each in found[1:]):
            raise ValueError("it is of other data")
    except (DecoctError, OSError, ValueError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return found


def keep_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays into a folder, whole or not at all, unless another process was first or the disk is full."""
    own = folder.with_name(f"{folder.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(DecoctError, OSError):
            with writing(own, kind="data", name=folder.name) as draft:
                for name, each in arrays.items():
                    np.save(draft.folder / f"{name}.npy", each, allow_pickle=False)
            own.rename(folder)
    except OSError:
        return
    finally:
        shutil.rmtree(own, ignore_errors=True)
