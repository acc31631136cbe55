"""Whether the files of a run are as they were written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from decoct.artifact import MANIFEST, damaged, read_manifest
from decoct.errors import DataError, IntegrityError


@dataclass(frozen=True)
class Verified:
    """One artifact: its folder, how many files it has, what is wrong, and how an exported file compares."""

    artifact: str
    files: int
    wrong: tuple[str, ...] = ()
    parity: str = ""


def verify(folder: Path | str, *, offline: bool = False) -> list[Verified]:
    """Compares every file of a run, or of one artifact, with its checksum.

    DataError if there is nothing to verify.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder of a run or of one artifact")
    found = [folder] if (folder / MANIFEST).exists() else sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    found = [each for each in found if not each.name.startswith(".")]
    if not found:
        raise DataError(f"{folder}: holds no artifact; give the folder of a run or of one artifact")
    return [_verified(each) for each in found]


def _verified(folder: Path) -> Verified:
    try:
        return Verified(str(folder), len(read_manifest(folder)["files"]), tuple(damaged(folder)))
    except IntegrityError as error:
        return Verified(str(folder), 0, (str(error),))
