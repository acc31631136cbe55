"""Threads: cores by affinity and quota, chosen by the command alone, and never against the user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoct.threads import CHOSEN, COUNT, WAITING, choose, chosen, cores, quota
from decoct.training.launching import environment

Limits = st.lists(st.none() | st.tuples(st.integers(1, 10**7), st.integers(1, 10**6)), min_size=1, max_size=4)
NAMES = ("kubepods", "pod", "box")


def tree(root: Path, version: int, limits: list[tuple[int, int] | None]) -> tuple[Path, Path]:
    """Folders of nested groups, each with its limit, and the file that says in which this process is."""
    top = root / "fs" / ("cpu,cpuacct" if version == 1 else "")
    path = "/".join(NAMES[: len(limits) - 1])
    folder = top
    for name, limit in zip(("", *NAMES), limits):
        folder = folder / name
        folder.mkdir(parents=True, exist_ok=True)
        if version == 2:
            text = "max 100000" if limit is None else f"{limit[0]} {limit[1]}"
            (folder / "cpu.max").write_text(text + "\n")
        else:
            (folder / "cpu.cfs_quota_us").write_text(f"{-1 if limit is None else limit[0]}\n")
            (folder / "cpu.cfs_period_us").write_text(f"{100000 if limit is None else limit[1]}\n")
    lines = {1: f"4:memory:/other\n3:cpu,cpuacct:/{path}\n0::/\n", 2: f"0::/{path}\n"}
    (root / "groups").write_text(lines[version])
    return root / "fs", root / "groups"


@given(version=st.sampled_from([1, 2]), limits=Limits)
def test_the_narrowest_quota_of_all_groups_counts(version: int, limits: list[tuple[int, int] | None]) -> None:
    with TemporaryDirectory() as name:
        where = tree(Path(name), version, limits)
        shares = [each[0] / each[1] for each in limits if each is not None]
        assert quota(*where) == min(shares, default=None)
        allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        assert cores(*where) == max(1, min(allowed, int(min(shares, default=allowed))))


@given(st.binary(max_size=30))
def test_what_is_no_quota_limits_nothing(content: bytes) -> None:
    with TemporaryDirectory() as name:
        root = Path(name)
        (root / "cpu.max").write_bytes(b"x" + content)
        (root / "groups").write_bytes(b"0::/\n" + content)
        assert quota(root, root / "groups") is None
        assert cores(root, root / "absent") >= 1


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
def test_affinity_counts() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert 1 <= cores() <= len(before)


@given(st.dictionaries(st.sampled_from([COUNT, *WAITING]), st.integers(1, 9).map(str)))
def test_what_the_user_set_stays(own: dict[str, str]) -> None:
    made = dict(own)
    choose(made, 5)
    assert {name: made[name] for name in own} == own
    assert made[COUNT] == own.get(COUNT, "5")
    assert chosen(made) == (None if COUNT in own else 5)
    assert {name: made[name] for name in WAITING if name in made} == ({n: own[n] for n in own if n != COUNT} or WAITING)


def test_processes_share_the_cores_that_the_command_chose() -> None:
    parent: dict[str, str] = {}
    choose(parent, 64)
    share = max(1, cores() // 2)
    child = environment(1, 2, 29500, parent)
    assert (child[COUNT], chosen(child)) == (str(share), share)
    own = environment(1, 2, 29500, {COUNT: "7", CHOSEN: "64"})
    assert (own[COUNT], chosen(own)) == ("7", None)
    assert child["OMP_WAIT_POLICY"] == "passive"


def told(code: str, **own: str) -> dict[str, str]:
    """What a fresh interpreter prints as JSON, whose user set nothing but `own`."""
    free = {
        name: value for name, value in os.environ.items() if name not in (COUNT, CHOSEN, "MKL_NUM_THREADS", *WAITING)
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env={**free, **own}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


COMMAND = """
import json, os, sys
before = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
if before: os.sched_setaffinity(0, before[:1])
from decoct.cli.app import main
sys.argv = ["decoct", "list", "tasks", "--quiet"]
try:
    main()
except SystemExit as error:
    assert not error.code
assert "torch" not in sys.modules
if before: os.sched_setaffinity(0, before)
import torch
child = "import os, json; print(json.dumps(dict(os.environ)))"
import subprocess
seen = json.loads(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout)
names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "DECOCT_THREADS")
print(json.dumps({"torch": torch.get_num_threads(), **{name: seen.get(name) for name in names}}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
def test_the_command_chooses_before_torch_is_there_and_children_inherit_it() -> None:
    """The one core that the command was left counts, though torch comes later."""
    found = told(COMMAND)
    assert found == {
        "torch": 1,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "0",
        "DECOCT_THREADS": "1",
    }
    found = told(COMMAND, OMP_NUM_THREADS="3", OMP_WAIT_POLICY="active")
    assert (found["OMP_NUM_THREADS"], found["OMP_WAIT_POLICY"]) == ("3", "active")
    assert found["GOMP_SPINCOUNT"] is None
    assert found["DECOCT_THREADS"] is None


def test_a_library_changes_no_threads() -> None:
    code = """
import json, os, torch
before, own = torch.get_num_threads(), dict(os.environ)
import decoct
decoct.KD, decoct.Train, decoct.distill
changed = sorted(name for name in os.environ if os.environ[name] != own.get(name) and "THREAD" in name or "OMP" in name)
print(json.dumps({"same": torch.get_num_threads() == before, "changed": changed}))
"""
    assert told(code) == {"same": True, "changed": []}
