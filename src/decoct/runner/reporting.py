"""The page of runs that are there, written for figures that artifacts vouch for."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from decoct.report.run_manifest import PAGE, RUN_MANIFEST
from decoct.runner.folders import lock
from decoct.runner.vouching import refuse_unvouched


def report(folders: Sequence[Path], out: Path | None = None) -> tuple[Path, list[str]]:
    """Writes the page of one run, or of several compared, and returns its path and what is to be said of the runs: of
    several what each gained over the first.

    Without `out`, one run's page goes into its folder, which is held meanwhile, and that of several beside where the
    command was called. IntegrityError where files or figures are not those that the runs wrote, ResourceError where a
    run still goes on in the folder that the page is to be written to.
    """
    from decoct.report.comparing import gains
    from decoct.report.page import write_page
    from decoct.report.runs import read_runs

    folders = [Path(each) for each in folders]
    target = Path(out) if out else folders[0] / PAGE if len(folders) == 1 else Path(PAGE)
    own = next((each for each in folders if each.resolve() == target.resolve().parent and each.is_dir()), None)
    with contextlib.nullcontext() if own is None else lock(own):
        notes = [note for each in folders if (note := _note(each))]
        written = write_page(folders, target)
        gained = [each.text for each in gains(read_runs(folders))] if len(folders) > 1 else []
        return written, [*notes, *gained]


def _note(run: Path) -> str:
    manifest = refuse_unvouched(run)
    if manifest is None:
        return f"{run}: its figures are not vouched for: it has no {RUN_MANIFEST}, as runs of 0.1.0 have none"
    if manifest.state == "failed":
        return f"{run}: the run failed at {manifest.failed.get('step')}: {manifest.failed.get('message')}"
    return f"{run}: the run did not end; decoct run goes on from here" if manifest.state == "running" else ""
