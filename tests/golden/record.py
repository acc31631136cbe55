"""Writes the golden files anew: `python tests/golden/record.py [NAME]...`, by default all of them.

Only where a change is meant to change numbers, as CONTRIBUTING.md says; never for code that moves.
"""

import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from golden_losses import alone, in_two
from golden_numbers import record
from golden_recipes import RECIPES, TWO_PROCESSES


def losses(name: str) -> None:
    """What a tiny recipe logs in one process."""
    with tempfile.TemporaryDirectory() as folder:
        record(name, alone(name, Path(folder)))


def two_processes() -> None:
    """What some of them log in two."""
    with tempfile.TemporaryDirectory() as folder:
        record("two_processes", in_two(TWO_PROCESSES, Path(folder)))


RECORDERS: Mapping[str, Callable[[], None]] = {
    **{name: partial(losses, name) for name in RECIPES},
    "two_processes": two_processes,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in sys.argv[1:] or RECORDERS:
        RECORDERS[each]()
        print(f"{each}.json is written")
