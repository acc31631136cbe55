"""Two real processes over gloo step as one process does, however the window is cut."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("process_runs.py")


def started(objective: str, cuts: str, folder: Path, processes: int) -> list[subprocess.CompletedProcess[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    several = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if processes > 1 else {}
    running = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        command = [sys.executable, str(SCRIPT), objective, cuts, str(folder / f"{processes}-{rank}.safetensors")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **several, **own}
        running.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    return [subprocess.CompletedProcess(p.args, p.wait(), *p.communicate()) for p in running]


@pytest.mark.parametrize(("objective", "cuts"), [("kd", "5"), ("many", "2,3,9")])
def test_two_processes_have_the_gradients_of_one(objective: str, cuts: str, tmp_path: Path) -> None:
    for processes, own in ((1, ""), (2, cuts)):
        for each in started(objective, own, tmp_path, processes):
            assert each.returncode == 0, each.stderr
    whole = load_file(tmp_path / "1-0.safetensors")
    for rank in range(2):
        part = load_file(tmp_path / f"2-{rank}.safetensors")
        for name, expected in whole.items():
            torch.testing.assert_close(part[name], expected, rtol=1e-9, atol=1e-12, msg=f"{name} of process {rank}")


def test_terms_that_relate_samples_are_refused_in_two_processes(tmp_path: Path) -> None:
    for each in started("relational", "6", tmp_path, 2):
        assert each.returncode != 0
        assert "accumulate is 1 and processes 2: a term of this objective relates the samples" in each.stderr
