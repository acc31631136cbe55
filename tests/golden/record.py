"""Writes the golden files anew: `python tests/golden/record.py [NAME]...`, by default all but old runs.

Only where a change is meant to change numbers, as CONTRIBUTING.md says; never for code that moves.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from golden_digests import all_digests_of, entries, keys, recipes
from golden_inside import on_the_stand_in
from golden_losses import alone, in_two, room
from golden_numbers import FOLDER, record, recorded
from golden_old_runs import OLD_RUNS, archive, further, old_answers, pack
from golden_recipes import RECIPES, TWO_PROCESSES

import decoct as dc


def losses(name: str) -> None:
    """What a tiny recipe logs in one process."""
    with tempfile.TemporaryDirectory() as folder:
        record(name, alone(name, Path(folder)))


def two_processes() -> None:
    """What some of them log in two."""
    with tempfile.TemporaryDirectory() as folder:
        record("two_processes", in_two(TWO_PROCESSES, Path(folder)))


def old_run(name: str) -> None:
    """A whole folder as the code of today writes it, and what its models and stores say."""
    assert not archive(name).exists(), f"{archive(name)} is kept as earlier code wrote it; give a new one a new name"
    with tempfile.TemporaryDirectory() as folder, room(Path(folder)), on_the_stand_in():
        run = Path(folder) / "run"
        dc.Recipe.parse(OLD_RUNS[name]()).run(run)
        pack(run, name)
        record(f"old_{name}", old_answers(run) | further(name, run))


def write_digests() -> None:
    """The digests of every Spec."""
    added("digests", {name: all_digests_of(name) for name in entries()})


def write_keys() -> None:
    """The keys of every recipe's steps, for which DECOCT_DATA must name the folder of data sets."""
    root = Path(os.environ["DECOCT_DATA"])
    with tempfile.TemporaryDirectory() as folder:
        added("keys", {name: keys(recipe, Path(folder), root) for name, recipe in recipes().items()})


def added(name: str, found: Mapping[str, Any]) -> None:
    """Adds to a file what it does not hold yet; what it holds must be what is found."""
    known = recorded(name) if (FOLDER / f"{name}.json").exists() else {}
    changed = [each for each in known if found.get(each) != known[each]]
    assert not changed, f"{', '.join(changed)}: changed; take it out of {name}.json by hand if it is meant to change"
    record(name, known | found)


RECORDERS: Mapping[str, Callable[[], None]] = {
    **{name: partial(losses, name) for name in RECIPES},
    "two_processes": two_processes,
    "digests": write_digests,
    "keys": write_keys,
    **{f"old_{name}": partial(old_run, name) for name in OLD_RUNS},
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in sys.argv[1:] or [name for name in RECORDERS if not name.startswith("old_")]:
        RECORDERS[each]()
        print(f"{each}.json is written")
