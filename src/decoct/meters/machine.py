"""The machine that measurements were taken on."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import psutil

LIBRARIES = ("torch", "onnx", "onnxruntime", "numpy")


def machine() -> dict[str, Any]:
    """Processor, cores, memory, operating system and library versions; equal from call to call on one machine.

    >>> machine()["logical_cores"] >= 1
    True
    """
    return {
        "cpu": _cpu(),
        "architecture": platform.machine(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(logical=True),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
