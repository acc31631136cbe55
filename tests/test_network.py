"""That nothing leaves this machine by itself: what all processes ask the kernel for, looked at below Python."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from decoct.errors import ResourceError
from decoct.network import OFFLINE, REPORTS, offline

RECIPE = """\
version: 1
task: {use: image_classification}
data: {use: digits, limit: 40}
models:
  large: {use: mlp, hidden: [16]}
  small: {use: mlp, hidden: [4]}
steps:
  - {use: train, name: teacher, inputs: {model: large}, budget: {steps: 3}, batch_size: 16}
  - {use: label, name: labels, inputs: {teacher: teacher}WORKERS}
  - {use: distill, name: student, inputs: {model: small, teacher: labels}, budget: {steps: 3}, batch_size: 16}
  - {use: export, name: file}
  - {use: benchmark, name: benchmark, inputs: {student: file}}
"""
SCRIPT = """\
import decoct as dc
import torch
from torch.utils.data import DataLoader, TensorDataset

if __name__ == "__main__":
    dc.export(torch.nn.Linear(3, 2), "x.onnx", example=torch.randn(4, 3))
    loader = DataLoader(TensorDataset(torch.randn(32, 3), torch.arange(32) % 2), batch_size=16)
    teacher, asked = dc.OnnxFile("x.onnx"), {"teacher": dc.ProcessTeacher(workers=1)}
    dc.distill(teacher=teacher, student=torch.nn.Linear(3, 2), train=loader, epochs=1, teachers=asked)
"""
TELEMETRY = "DeveloperTools/.onnxruntime"
"""The folder from which ONNX Runtime sends; it is made while the package is imported, seconds before it sends."""
TRACKERS = ("true", "false", "False")
"""What MLflow, Weights & Biases and Gradio are told, in their own words."""
NETWORK = re.compile(r"\bsocket\((AF_(?!UNIX|NETLINK)\w+)")
PLACES = re.compile(r'(?:connect|sendto|sendmsg|sendmmsg|bind)\(.*?(?:inet_addr\(|inet_pton\(AF_INET6, )"([^"]+)"')


@pytest.fixture(scope="session")
def strace() -> str:
    """strace, where it may look at processes; without it such tests skip, under CI they fail."""
    found = shutil.which("strace")
    if found and subprocess.run([found, "-e", "trace=none", "true"], capture_output=True).returncode == 0:
        return found
    message = "strace is not installed, or may not look at processes; apt-get install strace"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def traced(strace: str, folder: Path, words: Sequence[str], expected: int = 0) -> str:
    """What `python WORDS` and all that it starts ask the kernel for of the network and of files, nothing set before."""
    away = {*REPORTS, OFFLINE, "HF_HUB_OFFLINE", "CI"}
    own = {name: value for name, value in os.environ.items() if name not in away}
    (folder / "home").mkdir(exist_ok=True)
    own |= {"HOME": str(folder / "home"), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    own.pop("XDG_CACHE_HOME", None)
    trace = folder / "trace"
    asked = [strace, "-f", "--seccomp-bpf", "-qq", "-e", "trace=%network,openat,mkdir", "-o", str(trace)]
    done = subprocess.run([*asked, sys.executable, *words], cwd=folder, env=own, capture_output=True, text=True)
    assert done.returncode == expected, done.stderr
    return trace.read_text(errors="replace")


def places(trace: str) -> set[str]:
    """The addresses that were spoken to, or listened at."""
    return set(PLACES.findall(trace))


def test_the_trace_shows_what_must_not_be(strace: str, tmp_path: Path) -> None:
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.9', 9))"
    found = traced(strace, tmp_path, ["-c", code])
    assert NETWORK.findall(found) == ["AF_INET"]
    assert places(found) == {"127.0.0.9"}
    assert TELEMETRY in traced(strace, tmp_path, ["-c", "import onnxruntime"])


def test_a_script_of_ones_own_sends_nothing_from_its_workers_either(strace: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    found = traced(strace, tmp_path, ["script.py"])
    assert (tmp_path / "x.onnx").is_file()
    assert TELEMETRY not in found
    assert NETWORK.findall(found) == []


@pytest.mark.parametrize("workers", ["", pytest.param(", workers: 2", marks=pytest.mark.slow)])
def test_a_run_opens_no_socket(strace: str, tmp_path: Path, workers: str) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE.replace("WORKERS", workers))
    found = traced(strace, tmp_path, ["-m", "decoct", "run", "tiny.yaml", "--offline"])
    assert (tmp_path / "runs/tiny/report.html").is_file()
    assert TELEMETRY not in found
    assert NETWORK.findall(found) == []


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--offline"], []], ids=["offline", "online"])
def test_the_demo_opens_no_socket(strace: str, tmp_path: Path, words: list[str]) -> None:
    found = traced(strace, tmp_path, ["-m", "decoct", "demo", *words])
    assert TELEMETRY not in found
    assert NETWORK.findall(found) == []


@pytest.mark.slow
def test_several_processes_speak_to_each_other_alone(strace: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE.replace("WORKERS", ""))
    found = traced(strace, tmp_path, ["-m", "decoct", "run", "tiny.yaml", "--nproc", "2", "--offline"])
    spoken = {each for each in places(found) if not re.fullmatch(r"127\..*|::1|::ffff:127\..*|0\.0\.0\.0|::", each)}
    assert spoken == set()
    assert TELEMETRY not in found


def test_no_socket_of_python_reaches_beyond_loopback_offline() -> None:
    with offline():
        for address in ("192.0.2.1", "2001:db8::1", "teacher.invalid"):
            with pytest.raises(ResourceError, match=f"offline: {address} would be spoken to"):
                socket.create_connection((address, 9))
        with pytest.raises(ResourceError, match="any host would be spoken to"):
            socket.create_server(("", 0))
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
            pass
        code = "import decoct, socket; socket.create_connection(('192.0.2.1', 9))"
        own = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True)
        assert "ResourceError: offline: 192.0.2.1" in done.stderr
    assert OFFLINE not in os.environ
    with socket.create_server(("", 0)):
        pass


def test_a_value_that_the_user_set_stays() -> None:
    code = "import os, decoct; print([os.environ[name] for name in decoct.network.REPORTS])"
    own = {name: value for name, value in os.environ.items() if name not in REPORTS}
    own["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    for before, expected in (
        ({}, "1"),
        ({"HF_HUB_DISABLE_TELEMETRY": "0"}, "0"),
        ({"HF_HUB_DISABLE_TELEMETRY": ""}, "1"),
    ):
        done = subprocess.run([sys.executable, "-c", code], env={**own, **before}, capture_output=True, text=True)
        assert done.stdout.strip() == str(["1", expected, "0", "1", *TRACKERS]), done.stderr
