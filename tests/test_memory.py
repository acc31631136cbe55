"""Memory: what is free, what is refused before it is taken, and errors that say that it is full."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from decoct.errors import ResourceError
from decoct.memory import free_memory, lacks_memory, require_memory, within_memory


def test_what_is_free_is_what_the_machine_says() -> None:
    assert 0 < free_memory() <= psutil.virtual_memory().total


def test_a_limit_on_the_process_counts() -> None:
    limited = (
        "import resource, psutil\n"
        "from decoct.memory import free_memory\n"
        "used = psutil.Process().memory_info().vms\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)\n"
        "print(free_memory())\n"
    )
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, check=True)
    assert 200_000_000 < int(done.stdout) <= 300_000_000


def test_what_does_not_fit_is_refused() -> None:
    require_memory(1, "a byte", "nothing")
    with pytest.raises(ResourceError, match=r"the field would take .* GB of memory, .* GB are free; lower it"):
        require_memory(free_memory() + (1 << 40), "the field", "lower it")


@pytest.mark.parametrize(
    "take",
    [
        lambda: np.ones((1 << 50,)),
        lambda: bytearray(1 << 60),
        lambda: torch.empty(1 << 50),
        lambda: torch.empty(1 << 40, 1 << 40),
    ],
    ids=["numpy", "python", "torch", "torch-overflow"],
)
def test_full_memory_is_told_from_other_errors(take: object) -> None:
    with pytest.raises(ResourceError, match=r"^labels: the memory is full"), within_memory("labels"):
        take()  # type: ignore[operator]


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="size of tensor a"), within_memory("labels"):
        torch.zeros(2) + torch.zeros(3)
    assert not lacks_memory(ValueError("out of memory"))


def zip_bomb(path: Path, claimed: int) -> Path:
    """A zip file whose one member says that it holds `claimed` bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(1000))
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = claimed.to_bytes(4, "little")
    path.write_bytes(content)
    return path


def test_weights_and_programs_that_unpack_beyond_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from decoct.models.weights import read_weights
    from decoct.targets.inspection import why_unsafe

    monkeypatch.setattr("decoct.memory.free_memory", lambda: 1 << 30)
    for read, name in ((read_weights, "a.pt"), (why_unsafe, "a.pt2")):
        with pytest.raises(ResourceError, match=rf"{name}: unpacked it would take 4\.3 GB"):
            read(zip_bomb(tmp_path / name, (1 << 32) - 2))
