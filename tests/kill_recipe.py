"""Runs, kills and continues whole recipes in forked processes; prints one JSON object.

The parent runs the recipe once, so that all is imported; each run is a fork. A run kills itself at its n-th
sync, rename or removal outside checkpoints, or is killed by the parent after a random time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import accelerate  # noqa: F401
import scipy.stats  # noqa: F401
import sklearn.metrics  # noqa: F401
import torch

import decoct as dc
from api_toys import SHORT, images, loader, network
from decoct.report import card, page  # noqa: F401
from decoct.runner.verify import verify_run
from tiny import PAIR, SHIPPED, recipe, timeless, tree

CHANGES: dict[str, Any] = {
    "data__limit": 48,
    "models__large": {"use": "mlp", "hidden": [12]},
    "models__small__hidden": [6],
}
KINDS = ("fsync", "rename", "replace", "rmdir")


def run(folder: Path, *, often: bool = False, shipped: bool = False) -> None:
    """One call of the recipe; `often` writes checkpoints all the time."""
    plain = SHIPPED if shipped else {**PAIR, "steps": [PAIR["steps"][0], PAIR["steps"][2]]}
    seconds = 0.005 if often else 60.0
    steps = {f"steps__{place}__checkpoint_seconds": seconds for place in range(3 if shipped else 2)}
    recipe(plain, **CHANGES, **steps).run(folder)


def digest(folder: Path, *, shipped: bool = False) -> str:
    """What must not hang on kills: artifacts and log without times, the names of all files, scores."""
    every = tree(folder)
    names = sorted(every)
    kept = {name: each for name, each in every.items() if Path(name).parent.name[:2].isdigit()}
    timed = ("log.jsonl", "manifest.json", "records.json")
    files = {name: each for name, each in kept.items() if Path(name).name not in timed}
    results = json.loads((folder / "results.json").read_text())
    models = [{name: each[name] for name in ("name", "quality", "fidelity", "n")} for each in results["models"]]
    assert (len(models) == 3) == shipped
    return sha256(json.dumps([names, files, timeless(folder / "log.jsonl"), models]).encode()).hexdigest()


class Mortal(torch.nn.Module):
    """A teacher in whose n-th call the process dies."""

    def __init__(self, dies_at: int | None) -> None:
        super().__init__()
        self.inner, self._calls, self._dies_at = network(8, 1), 0, dies_at

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._calls += 1
        if self._calls == self._dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner(x)


def distil(out: Path, dies_at: int | None) -> None:
    """One call of `distill` on modules and shuffling loaders."""
    settings = {**SHORT, "checkpoint_seconds": 0.001}
    val = loader(*images(seed=1), shuffle=False)
    dc.distill(Mortal(dies_at), network(3, 2), train=loader(*images()), val=val, out=out, **settings)


def in_python(root: Path) -> dict[str, Any]:
    """The same call of `distill`, left alone and killed twice."""
    assert not killed(fork(lambda: distil(root / "whole", None)))
    for dies_at in (4, 3):
        assert killed(fork(lambda at=dies_at: distil(root / "killed", at)))
        assert list((root / "killed/.01-student.work").glob("checkpoint-*"))
    assert not killed(fork(lambda: distil(root / "killed", None)))
    wanted, found = (root / name / "01-student" for name in ("whole", "killed"))
    names = ("model.safetensors", "scores.json")
    files = all((wanted / name).read_bytes() == (found / name).read_bytes() for name in names)
    return {"files": files, "log": timeless(wanted / "log.jsonl") == timeless(found / "log.jsonl")}


class Killer:
    """Counts what a run does to its folder and dies before the n-th of it."""

    def __init__(self, at: int | None) -> None:
        self.at, self.seen = at, []

    def install(self) -> None:
        for kind in KINDS:
            setattr(os, kind, self._before(kind, getattr(os, kind)))

    def _before(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{args[0]}") if kind == "fsync" else str(args[0])
            if "checkpoint-" not in path and ".work/log" not in path:
                self.seen.append(kind)
                if len(self.seen) == self.at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return counted


def fork(job: Callable[[], None]) -> int:
    """Runs `job` in a fork and returns its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            warnings.simplefilter("ignore")
            job()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def killed(child: int) -> bool:
    """Whether the process was killed; it must have ended well otherwise."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def finish(folder: Path, *, shipped: bool = False) -> str:
    """Runs to the end in a fork; the digest."""
    assert not killed(fork(lambda: run(folder, shipped=shipped)))
    return digest(folder, shipped=shipped)


def at_each_operation(root: Path) -> dict[str, Any]:
    root.mkdir()
    expected = finish(root / "whole")

    def count() -> None:
        killer = Killer(None)
        killer.install()
        run(root / "count")
        (root / "kinds").write_text(json.dumps(killer.seen))

    assert not killed(fork(count))
    kinds = json.loads((root / "kinds").read_text())
    same = []
    for n in range(1, len(kinds) + 1):

        def dies(n: int = n) -> None:
            Killer(n).install()
            run(root / str(n))

        assert killed(fork(dies)), (n, kinds[n - 1])
        begun = any((root / str(n)).glob("[!.]*"))
        found = [each for each in verify_run(root / str(n)) if each.wrong] if begun else []
        assert not found, (n, kinds[n - 1], found)
        same.append(finish(root / str(n)) == expected)
    return {"kinds": kinds, "same": same}


def at_random(root: Path, wanted: int, *, shipped: bool = False) -> dict[str, Any]:
    drawn = random.Random(0)
    begun = time.monotonic()
    expected = finish(root / "random", shipped=shipped)
    span = time.monotonic() - begun
    same, kills = [], 0
    while kills < wanted:
        folder = root / f"random-{len(same)}"
        for _ in range(min(6, wanted - kills)):
            child = fork(lambda folder=folder: run(folder, often=True, shipped=shipped))
            time.sleep(drawn.uniform(0, span))
            os.kill(child, signal.SIGKILL)
            kills += killed(child)
        same.append(finish(folder, shipped=shipped) == expected)
    return {"kills": kills, "same": same}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder) / "first")
        found = {
            "each": at_each_operation(Path(folder) / "each"),
            "random": at_random(Path(folder) / "random", 22),
            "python": in_python(Path(folder) / "python"),
            "shipped": at_random(Path(folder) / "shipped", 4, shipped=True),
        }
    print(json.dumps(found))
