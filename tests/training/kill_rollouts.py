"""Runs, kills and resumes trainings on what the student itself writes, under a teacher that answers in a thread.

The parent imports torch once and never computes with it; each run is a fork, which kills itself at its n-th event.
Prints one JSON object: for each way of saving, whether every resumed run ended as the one that was left alone.
"""

import json
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from kill_runs import _made, fork, wait
from torch import nn
from training_toy import timeless

from decoct.data.base import Split
from decoct.data.hashing import uniform
from decoct.data.rollouts import Rollouts
from decoct.data.sources import Batches
from decoct.outputs import Batch, Outputs
from decoct.teachers.remote.base import Ahead
from decoct.teachers.remote.running_ahead import RunsAhead
from decoct.training.budget import Budget
from decoct.training.fit import Options, State, fit
from decoct.training.updates import descend

WIDTH = 3


class Threaded(Ahead):
    """Answers in a thread, up to three questions ahead."""

    def __init__(self) -> None:
        super().__init__("student", 3)
        self.pool = ThreadPoolExecutor(1)

    def send(self, batch: Batch) -> Future[Outputs]:
        return self.pool.submit(lambda: Outputs(batch.side("student").sin()))


def collate(split: Split, indices: np.ndarray, *, seeds: np.ndarray | None = None, view: int = 0) -> Batch:
    x = torch.from_numpy(split.columns["x"][indices])
    return Batch({"student": x}, None, None, split.keys[indices], view)


def train(work: Path, checkpoint_seconds: float, event: Callable[[], None]) -> str:
    """One whole run, from the start or from where it was; a digest of weights, log and all that was learned from."""
    torch.manual_seed(0)
    student, teacher = nn.Linear(WIDTH, WIDTH).double(), Threaded()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.3)

    def policy(batch: Batch, seeds: np.ndarray) -> Batch:
        event()
        drawn = torch.from_numpy(uniform(seeds))[:, None]
        return batch.regenerated({"student": student(batch.side("student")) + 0.1 * drawn})

    def update(window, clock):
        event()
        errors = [(student(each.side("student")) - teacher(each).logits).square().mean() for each in window]
        logged = descend(torch.stack(errors).sum(), optimizer)
        event()
        return {**logged, "seen": torch.stack([each.side("student").sum() for each in window]).sum()}

    rows = np.random.default_rng(0).normal(size=(14, WIDTH))
    split = Split({"x": rows}, np.arange(14, dtype=np.uint64))
    prompts = Batches(split, collate, batch_size=3, seed=1, prefetch=2)
    source = RunsAhead(Rollouts(prompts, policy, seed=2, share=0.7), [teacher])
    state = State(student=student, optimizer=optimizer)
    settings = Options(log_every=1, checkpoint_seconds=checkpoint_seconds, accumulate=2, validate_every=4)
    fit(update, source, state, Budget(steps=9), work=work, validate=lambda: {"x": 0.0}, options=settings)
    records = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    digest = sha256(json.dumps(timeless(records)).encode())
    for each in student.parameters():
        digest.update(each.detach().numpy().tobytes())
    teacher.pool.shutdown()
    return digest.hexdigest()


def finish(folder: Path, checkpoint_seconds: float) -> tuple[str, int]:
    """Runs to the end in a fork; the digest, and how many events there were."""

    def job() -> None:
        events = []
        digest = train(folder / "work", checkpoint_seconds, lambda: events.append(None))
        (folder / "end").write_text(json.dumps([digest, len(events)]))

    assert wait(fork(job)) is None
    digest, events = json.loads((folder / "end").read_text())
    return digest, events


def killed(work: Path, checkpoint_seconds: float, last: int) -> None:
    """Runs until the event of number `last`, before which it dies."""
    left = [last]

    def event() -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    train(work, checkpoint_seconds, event)


def main(root: Path) -> dict:
    found = {}
    for name, seconds in (("each step", 0.0), ("at validations", 1e9)):
        whole, events = finish(_made(root / name / "whole"), seconds)
        same = []
        for last in range(events):
            folder = _made(root / name / str(last))
            child = fork(lambda folder=folder, last=last, seconds=seconds: killed(folder / "work", seconds, last))
            assert wait(child) == signal.SIGKILL
            same.append(finish(folder, seconds)[0] == whole)
        found[name] = same
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as root:
        print(json.dumps(main(Path(root))))
