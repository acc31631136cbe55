"""Processes of one group, started and waited for: none waits for a full pipe, and none is left behind."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

DEADLINE = 300.0
"""Seconds after which what does not end has hung: a hundred times what it takes."""


def ended(commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]]) -> list[tuple[int, str]]:
    """Exit code and standard error of each command, all run at the same time; those that hang are killed."""
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in commands]
        return _ended(commands, environments, files)


def started(words: Sequence[str], processes: int) -> list[tuple[int, str]]:
    """The script in several processes, each with its number in the place of RANK: exit codes and standard errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    several = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if processes > 1 else {}
    toys = str(Path(__file__).parent)  # position_toys.py
    paths = os.pathsep.join([toys, *filter(None, [os.environ.get("PYTHONPATH")])])
    commands, environments = [], []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        commands.append([sys.executable, *(each.replace("RANK", str(rank)) for each in words)])
        environments.append({**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **several, **own})
    return ended(commands, environments)


def _ended(
    commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]], files: Sequence[TextIO]
) -> list[tuple[int, str]]:
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=file, text=True)
        for command, environment, file in zip(commands, environments, files)
    ]
    last = time.monotonic() + DEADLINE
    try:
        for each in running:
            each.wait(max(0.0, last - time.monotonic()))
    finally:
        for each in running:
            each.kill()
            each.wait()
    for file in files:
        file.seek(0)
    return [(each.returncode, file.read()) for each, file in zip(running, files)]
