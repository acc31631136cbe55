"""Memory: what running an ONNX file adds to a process at its peak.

Run as a program (`python -m decoct.meters.memory FILE FEED BASE THREADS`) it is the process that is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from decoct.errors import ResourceError

CALLS = 3


def peak_memory(path: Path, feed: Mapping[str, np.ndarray], *, threads: int = 1) -> int:
    """Bytes by which loading and running `path` on `feed` raises a fresh process's peak of resident memory.

    The baseline is the same process after ONNX Runtime has loaded and run a graph of one node. Linux resets the
    peak at the baseline; elsewhere the peak so far is the baseline, so that small models may show 0.
    ResourceError if the process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        base, arrays = Path(folder) / "base.onnx", Path(folder) / "feed.npz"
        base.write_bytes(_one_node())
        columns: dict[str, Any] = dict(feed)
        np.savez(arrays, **columns)
        command = [sys.executable, "-m", "decoct.meters.memory", str(path), str(arrays), str(base), str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ResourceError(f"the memory of {path} could not be measured: {done.stderr.strip()[-300:]}")
    return int(json.loads(done.stdout)["peak_bytes"])


def _one_node() -> bytes:
    from onnx import TensorProto, helper

    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "base", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    content: bytes = model.SerializeToString()
    return content


def _measured(path: Path, arrays: Path, base: Path, threads: int) -> int:
    from decoct.models.onnx_file import open_session

    open_session(base, threads=threads)({"x": np.zeros(1, np.float32)})
    with np.load(arrays, allow_pickle=False) as file:
        feed = {name: file[name] for name in file.files}
    before = _reset_peak()
    session = open_session(path, threads=threads)
    for _ in range(CALLS):
        session(feed)
    return max(0, _peak() - before)


def _reset_peak() -> int:
    """Resident bytes now, with the peak set back to them where the system can."""
    reset = Path("/proc/self/clear_refs")
    try:
        reset.write_text("5", encoding="ascii")
    except OSError:
        return _peak()
    return int(psutil.Process().memory_info().rss)


def _peak() -> int:
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


if __name__ == "__main__":
    peak_bytes = _measured(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    sys.stdout.write(json.dumps({"peak_bytes": peak_bytes}))
