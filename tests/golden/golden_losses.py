"""Runs the tiny recipes and gathers what their logs say; as a script, in each of several processes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from golden_data import write_data
from golden_recipes import RECIPES

import decoct as dc

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
DEADLINE = 300.0
"""Seconds after which two processes have hung: many times what they take."""


@contextmanager
def room(folder: Path) -> Iterator[Path]:
    """A folder with the made-up data, to which recipes' paths are relative."""
    before = Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    write_data(folder)
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)


def alone(name: str, folder: Path) -> dict[str, Any]:
    """What the recipe's steps log in one process."""
    with room(folder):
        return logs(dc.Recipe.parse(RECIPES[name]()).run(folder / "run").folder)


def in_two(names: Sequence[str], folder: Path) -> dict[str, Any]:
    """What each of several recipes logs in two processes, which are started once for all of them."""
    with room(folder):
        command = [*TORCHRUN, __file__, *names]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=DEADLINE)
        assert done.returncode == 0, done.stderr
        for name in names:
            assert json.loads((folder / name / "results.json").read_text(encoding="utf-8"))["processes"] == 2
        return {name: logs(folder / name) for name in names}


def logs(run: Path) -> dict[str, Any]:
    """Of each step of a run, all records without their times, and the scores of what was kept."""
    found = {}
    for manifest in sorted(run.glob("[0-9]*/manifest.json")):
        artifact = dc.Artifact.load(manifest.parent)
        log = manifest.with_name("log.jsonl")
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        records = [{key: each for key, each in json.loads(line).items() if key != "time"} for line in lines]
        found[artifact.name] = {"scores": dict(artifact.scores), "log": records}
    return found


if __name__ == "__main__":
    for each in sys.argv[1:]:
        dc.Recipe.parse(RECIPES[each]()).run(each)
