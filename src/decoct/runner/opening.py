"""Opening data and resolving tasks, from the index where nothing has changed."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from decoct.artifact import Described, Strict, check_shape, described_by, read_sealed, sealed, write_whole
from decoct.data.files import others_may_write
from decoct.data.index import index_folder, opened
from decoct.errors import DataError, DecoctError
from decoct.runner.keys import within
from decoct.spec import Spec

if TYPE_CHECKING:
    from decoct.data.base import Data, Dataset
    from decoct.tasks.base import Task


class _Resolved(Strict):
    """Shape of a resolved task in the index."""

    task: Described


def prepare_data(data: Data, task: Task, *, offline: bool = False, sure: bool = True) -> tuple[Dataset, Task]:
    """An opened data set, and the task with what the data decide.

    Not `sure`: what the index remembers of files that look as they did is taken at its word (`opened`).
    """
    found = opened(data, offline=offline, sure=sure)
    return found, resolved(task, found)


def looked_at_closely(setting: str, data: Data, before: Dataset, *, offline: bool = False) -> Dataset:
    """The same data set, its files compared with their checksums where the index was taken at its word so far.

    DataError where they hold something else.
    """
    if not before.remembered:
        return before
    now = opened(data, offline=offline)
    if now.fingerprint != before.fingerprint:
        raise DataError(
            f"{setting}: the files of {data.path} are others than the index remembers, though their sizes and times "
            "are the same; the index has read them anew: run again"
        )
    return now


def resolved(task: Task, data: Dataset) -> Task:
    """The task with what the data decide: vocabulary, statistics, classes; kept beside the data in the index."""
    if data.index is None or not _hangs_on_data_alone(task):
        return task.resolve(data)
    name = hashlib.sha256(f"{data.fingerprint} {task.digest()}".encode()).hexdigest()[:32]
    place = data.index.with_name(f"{data.index.name}.tasks") / f"{name}.json"
    kept = _kept(place)
    if kept is not None:
        return kept
    found = task.resolve(data)
    with contextlib.suppress(DecoctError, OSError, ValueError):
        if described_by("decoct.tasks", found.plain(), place) == found:
            write_whole(place, sealed({"task": found.plain()}))
    return found


def _kept(place: Path) -> Task | None:
    try:
        if others_may_write(index_folder()):
            return None
        plain = check_shape(read_sealed(place), str(place), _Resolved)["task"]
        found: Task = described_by("decoct.tasks", plain, place)
    except (DecoctError, OSError):
        return None
    return found


def _hangs_on_data_alone(task: Task) -> bool:
    """Whether the task's Specs are decoct's own and name no file."""
    return all(type(each).__module__.startswith("decoct.") and not _names_a_file(each) for each in within(task))


def _names_a_file(spec: Spec) -> bool:
    return any(isinstance(getattr(spec, name), Path) for name in type(spec).model_fields)
