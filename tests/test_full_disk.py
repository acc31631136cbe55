"""Disks that are really full, at every road to a file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("full_disk.py")
CASES = ("teacher:40000", "answers:9000", "student:0", "onnx:9000", "pt2:40000", "int8:9000")


def test_a_full_disk_says_where_and_how_much_and_the_run_goes_on_when_it_grew(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    command = ["unshare", "-m", sys.executable, str(SCRIPT), str(tmp_path), *CASES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "must be superuser" in done.stderr or "permission denied" in done.stderr:
        pytest.skip("no file system may be mounted here")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(CASES), done.stderr
    for each in found:
        assert each["ended"].startswith("4: "), each["ended"]
        assert "no space left on the disk; " in each["ended"]
        assert " are needed, and " in each["ended"]
        assert each["left"] == []
        assert each["again"] == "done"
    assert len({tuple(each["hashes"]) for each in found}) == 1
