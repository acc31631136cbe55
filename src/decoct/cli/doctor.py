"""The environment: what decoct finds, what is wrong with it, and what mends it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from decoct.artifact import size_text, write_whole
from decoct.data.index import index_folder
from decoct.threads import cores

REQUIRED = {
    "torch": (2, 11),
    "torchvision": (0, 26),
    "onnx": (1, 21),
    "onnxruntime": (1, 22),
    "onnxscript": (0, 7, 1),
    "pydantic": (2, 12),
    "safetensors": (0, 5),
    "scikit-learn": (1, 5),
}
EXTRAS = {
    "vision": ("timm", "pyarrow"),
    "nlp": ("transformers", "tokenizers"),
}
DISK_MIB = 500
MEMORY_MIB = 1000


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what was found, whether it will do, and what to do where not.

    `essential`: decoct does not work without it.
    """

    name: str
    found: str
    good: bool
    essential: bool = True
    fix: str = ""


def examine() -> list[Finding]:
    """Everything that decoct needs of the machine, in reading order."""
    return [_python(), *_packages(), *_torch(), *_extras(), _cache(), _index(), *_machine()]


def broken(findings: list[Finding]) -> list[Finding]:
    """Those without which decoct does not work."""
    return [each for each in findings if each.essential and not each.good]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("Python", version, sys.version_info >= (3, 11), fix="install Python 3.11 or newer")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version.

    >>> numbers("2.15.0+cpu"), numbers("1.0rc1")
    ((2, 15, 0), (1,))
    """
    found = []
    for part in version.partition("+")[0].split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)


def _packages() -> Iterator[Finding]:
    for package, least in REQUIRED.items():
        version, wanted = _version(package), ".".join(map(str, least))
        good = version is not None and numbers(version) >= least
        yield Finding(package, version or "missing", good, fix=f'pip install "{package}>={wanted}"')


def _torch() -> Iterator[Finding]:
    """Whether torch and ONNX Runtime load, and the devices they see."""
    try:
        import onnxruntime
        import torch
    except (ImportError, OSError) as error:
        yield Finding(
            "loading torch and onnxruntime", str(error), False, fix="pip install --force-reinstall torch onnxruntime"
        )
        return
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(each) for each in range(torch.cuda.device_count()))
        yield Finding("CUDA", f"{torch.version.cuda}: {names}", True, essential=False)
    else:
        yield Finding("CUDA", "no device; the processor is used", True, essential=False)
    providers = ", ".join(each.removesuffix("ExecutionProvider") for each in onnxruntime.get_available_providers())
    yield Finding("onnxruntime providers", providers, "CPU" in providers, fix="pip install onnxruntime")
    threads, free = torch.get_num_threads(), cores()
    fix = "unset OMP_NUM_THREADS, or set it to the number of cores"
    yield Finding("threads", f"{threads} of {free} cores", threads <= free, essential=False, fix=fix)


def _extras() -> Iterator[Finding]:
    for extra, packages in EXTRAS.items():
        versions = {package: _version(package) for package in packages}
        found = ", ".join(f"{package} {version or 'missing'}" for package, version in versions.items())
        good = all(versions.values())
        yield Finding(f"extra {extra}", found, good, essential=False, fix=f'pip install "decoct[{extra}]"')


def cache_folder() -> Path:
    """Where downloads are kept: DECOCT_CACHE, else decoct in the user's cache folder."""
    chosen = os.environ.get("DECOCT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(chosen or f"{base}/decoct").expanduser()


def _cache() -> Finding:
    folder = cache_folder()
    try:
        write_whole(folder / "doctor", "written to see that it can be")
        (folder / "doctor").unlink()
    except OSError as error:
        fix = "set DECOCT_CACHE to a folder that can be written"
        return Finding("cache folder", f"{folder}: {error.strerror}", False, fix=fix)
    return Finding("cache folder", str(folder), True)


def _index() -> Finding:
    """Where the index of data sets is, and how large: it can be removed at any time."""
    folder = index_folder()
    size = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
    return Finding("index of data sets", f"{folder}: {size_text(size)}", True, essential=False)


def _machine() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    free = memory.available // 2**20
    found = f"{free} MiB free of {memory.total // 2**20} MiB"
    yield Finding(
        "memory", found, free >= MEMORY_MIB, essential=False, fix="end other programs, or train smaller models"
    )
    for name, folder in (("disk, working folder", Path.cwd()), ("disk, temporary", Path(tempfile.gettempdir()))):
        room = shutil.disk_usage(folder).free // 2**20
        yield Finding(name, f"{room} MiB free", room >= DISK_MIB, essential=room < 10, fix=f"free {DISK_MIB} MiB")
