"""A run that is killed at any instant and called again ends as one that was left alone."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_killed_at_any_instant_a_run_ends_as_one_that_was_left_alone() -> None:
    script = Path(__file__).parents[1] / "kill_recipe.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    kinds, same = found["each"]["kinds"], found["each"]["same"]
    assert {"fsync", "rename", "replace", "rmdir"} == set(kinds)
    assert len(kinds) == len(same) > 30
    assert [(n, kind) for n, (kind, well) in enumerate(zip(kinds, same), 1) if not well] == []
    assert found["random"]["kills"] >= 20
    assert all(found["random"]["same"])
    assert found["shipped"]["kills"] >= 4
    assert all(found["shipped"]["same"])
    assert found["python"] == {"files": True, "log": True}
