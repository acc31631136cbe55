"""Runs, kills and resumes small trainings in forked processes; prints one JSON object.

The parent imports torch once and never computes with it; each run is a fork. A run is killed by SIGKILL from the
parent after a random time, or kills itself at its n-th write, sync or rename.
"""

import builtins
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from hashlib import sha256
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import accelerate  # noqa: F401
import safetensors.torch
import torch
import torch._dynamo
from torch import nn
from training_toy import HandCriterion, Toy, network, predictor, timeless

from decoct.training.budget import Budget
from decoct.training.fit import Options, State, fit
from decoct.training.packing import pack
from decoct.training.schedules import Cosine, Linear
from decoct.training.updates import Descent


def train(work: Path, epochs: int, checkpoint_seconds: float, pause: float) -> str:
    """One whole run, from the start or from where it was; a digest of weights, optimizer and log."""
    student, teacher = network(0, dropout=0.3), network(1)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.01)
    criterion = HandCriterion(Linear(1, 0))

    def teacher_outputs(batch):
        with torch.no_grad():
            return predictor(teacher)(batch)

    def forward(batch):
        if pause:
            time.sleep(pause)
        return predictor(student)(batch)

    def validate():
        batch = Toy(sizes=(30,)).make(99, 0)
        logits = student(batch.side("student"))
        return {"loss": nn.functional.cross_entropy(logits, batch.target).item()}

    torch.manual_seed(3)
    history = fit(
        Descent(forward, {"t": teacher_outputs}, criterion, optimizer, lr=Cosine(0.02)),
        Toy(poison=[(1, 3)]),
        State(student=student, optimizer=optimizer, criterion=criterion),
        Budget(epochs=epochs),
        work=work,
        validate=validate,
        options=Options(select=("loss", "min"), log_every=4, checkpoint_seconds=checkpoint_seconds, accumulate=2),
    )
    data, tensors = pack([student.state_dict(), optimizer.state_dict(), torch.get_rng_state()])
    on_disk = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    assert on_disk == history.records
    digest = sha256(json.dumps([data, timeless(on_disk), history.best, history.steps]).encode())
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()


class Killer:
    """Counts writes, syncs, renames and removals; dies before the n-th, or half way through a write."""

    def __init__(self, at: int | None) -> None:
        self.count, self.at, self.kinds = 0, at, []

    def hit(self, kind: str) -> bool:
        self.count += 1
        self.kinds.append(kind)
        return self.count == self.at

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        for name in ("fsync", "rename", "replace", "truncate", "rmdir", "unlink"):
            setattr(os, name, self._before(name, getattr(os, name)))
        opened = io.open

        def watched(file, mode="r", *args, **kwargs):
            made = opened(file, mode, *args, **kwargs)
            if set(mode) & set("wax") and self.hit(f"open {mode}"):
                made.write("half" if "b" not in mode else b"half")
                made.flush()
                self.die()
            return made

        io.open = builtins.open = watched
        save = safetensors.torch.save_file

        def save_file(tensors, path):
            if self.hit("tensors"):
                save(tensors, path)
                raw = Path(path).read_bytes()
                os.truncate(path, len(raw) // 2)
                self.die()
            save(tensors, path)

        safetensors.torch.save_file = save_file

    def _before(self, name, function):
        def counted(*args, **kwargs):
            if self.hit(name):
                self.die()
            return function(*args, **kwargs)

        return counted


def fork(job) -> int:
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


def wait(child: int) -> int | None:
    """The signal that ended the process; None where it ended well."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    assert os.WEXITSTATUS(status) == 0
    return None


def finish(folder: Path, *settings) -> str:
    """Runs to the end in a fork and returns the digest."""
    assert wait(fork(lambda: (folder / "digest").write_text(train(folder / "work", *settings)))) is None
    return (folder / "digest").read_text()


def at_each_operation(root: Path) -> dict:
    settings = (2, 1e9, 0.0)
    expected = finish(_made(root / "whole"), *settings)

    def count():
        killer = Killer(None)
        killer.install()
        train(_made(root / "count") / "work", *settings)
        (root / "kinds").write_text(json.dumps(killer.kinds))

    assert wait(fork(count)) is None
    kinds = json.loads((root / "kinds").read_text())
    same = []
    for n in range(1, len(kinds) + 1):
        folder = _made(root / str(n))

        def killed(n=n, folder=folder):
            Killer(n).install()
            train(folder / "work", *settings)

        assert wait(fork(killed)) == signal.SIGKILL, (n, kinds[n - 1])
        same.append(finish(folder, *settings) == expected)
    return {"kinds": kinds, "same": same}


def at_random(root: Path, wanted: int, seed: int) -> dict:
    settings, drawn = (8, 0.01, 0.002), random.Random(seed)
    begun = time.monotonic()
    expected = finish(_made(root / "random"), *settings)
    span = time.monotonic() - begun
    same, kills = [], 0
    while kills < wanted:
        folder = _made(root / f"random-{len(same)}")
        for _ in range(6):
            child = fork(lambda folder=folder: train(folder / "work", *settings))
            time.sleep(drawn.uniform(0, span / 2))
            os.kill(child, signal.SIGKILL)
            kills += wait(child) == signal.SIGKILL
        same.append(finish(folder, *settings) == expected)
    return {"kills": kills, "same": same}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root:
        each = at_each_operation(Path(root))
        print(json.dumps({"each": each, "random": at_random(Path(root), int(sys.argv[1]), int(sys.argv[2]))}))
