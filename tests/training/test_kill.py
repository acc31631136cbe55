"""Exact resume after SIGKILL at any instant."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_killed_at_any_instant_a_run_ends_with_equal_weights_optimizer_and_log():
    script = Path(__file__).parent / "kill_runs.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), "24", "0"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["random"]["kills"] >= 20
    assert all(found["random"]["same"])
    kinds = found["each"]["kinds"]
    assert len(kinds) == len(found["each"]["same"]) > 30
    assert {"fsync", "rename", "tensors", "open w"} <= set(kinds)
    wrong = [(n, kind) for n, (kind, same) in enumerate(zip(kinds, found["each"]["same"]), 1) if not same]
    assert wrong == []


def test_killed_while_it_learns_from_what_it_writes_itself_a_run_ends_as_one_that_was_left_alone():
    """Batches drawn before the weights that write them were there would differ after a kill."""
    script = Path(__file__).parent / "kill_rollouts.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, same in json.loads(done.stdout).items():
        assert len(same) > 25, name
        assert [last for last, each in enumerate(same) if not each] == [], name
