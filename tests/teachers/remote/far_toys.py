"""Nets, tasks, sources and teachers for tests of teachers elsewhere; importable by worker processes."""

from __future__ import annotations

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from decoct.capture import capture
from decoct.data.base import Split
from decoct.data.sources import Batches
from decoct.models.heads import run_factored
from decoct.outputs import Batch, Outputs
from decoct.teachers.contract import frozen
from decoct.teachers.remote.base import Ahead

CLASSES, WIDTH = 5, 6


@dataclass(frozen=True)
class Plain:
    """The part of a reading that a teacher uses."""

    kind: str = "tabular"
    reader: str = "teacher"
    per_pixel: bool = False

    def forward(self, network, batch, needs):
        with capture(network.module, needs.features) as features:
            logits = network.module(batch.side(self.reader))
        return Outputs(logits, features=dict(features))


def network(seed=0, width=WIDTH):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(width, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, CLASSES))


def source(samples=23, batch_size=4, seed=0, **options):
    """Batches over made-up rows."""
    rows = np.random.default_rng(seed).normal(size=(samples, WIDTH)).astype(np.float32)
    split = Split({"features": rows}, np.arange(samples, dtype=np.uint64) * 7)
    return Batches(split, collate, batch_size=batch_size, seed=seed, **options)


def collate(split, indices, *, seeds=None, view=0):
    x = torch.from_numpy(split.columns["features"][indices])
    if seeds is not None:
        noise = [np.random.default_rng(int(each)).normal(size=WIDTH) for each in seeds]
        x = x + torch.from_numpy(np.stack(noise).astype(np.float32))
    return Batch({"student": x, "teacher": x}, torch.zeros(len(indices)), None, split.keys[indices], view)


class Threaded(Ahead):
    """Answers in a thread with the sums of the rows, and counts who asked for what."""

    def __init__(self, room=3):
        super().__init__("teacher", room)
        self.pool = ThreadPoolExecutor(1)
        self.asked = []

    def send(self, batch) -> Future[Outputs]:
        self.asked.append(batch.keys.tolist())
        return self.pool.submit(lambda: Outputs(batch.side("teacher").sum(1, keepdim=True)))


class Deadly(nn.Module):
    """Ends its process where the first number of a batch is above 1e6, once for each file in a folder."""

    def __init__(self, folder):
        super().__init__()
        self.inner, self.folder = nn.Linear(WIDTH, CLASSES), str(folder)

    def forward(self, x):
        if x[0, 0] > 1e6 and (left := sorted(os.listdir(self.folder))):
            os.remove(os.path.join(self.folder, left[0]))
            os._exit(9)
        return self.inner(x)


class Faulty(nn.Module):
    """Raises on large numbers, and writes to itself where it is told to."""

    def __init__(self, writes=False):
        super().__init__()
        self.inner, self.writes = nn.Linear(WIDTH, CLASSES), writes
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if x[0, 0] > 1e6:
            raise ZeroDivisionError("these numbers are too large")
        if self.writes:
            self.calls += 1
        return self.inner(x)


@dataclass(frozen=True)
class Squares:
    """A factory of jobs: n -> n², as text; dies over `deadly` as long as there are files in `folder`."""

    folder: str = ""
    deadly: int = -1
    wrong: int = -1

    def __call__(self):
        def job(n):
            if n == self.wrong:
                raise ValueError(f"{n} is wrong")
            if n == self.deadly and (left := sorted(os.listdir(self.folder))):
                os.remove(os.path.join(self.folder, left[0]))
                os._exit(9)
            return f"{n * n} in {os.getpid()}".encode()

        return job


class Teaching:
    """A job under the teacher contract, of a teacher that writes to itself over job 3."""

    def __enter__(self):
        self.net = Faulty()
        self.context = frozen(self.net)
        self.context.__enter__()
        return self

    def __exit__(self, *error):
        return self.context.__exit__(*error)

    def __call__(self, n):
        self.net.writes = n == 3
        self.net(torch.zeros(1, WIDTH))
        return str(n).encode()


def bullets(folder, count):
    """A folder with so many files."""
    folder.mkdir()
    for number in range(count):
        (folder / str(number)).write_text("")
    return str(folder)


BEFORE = set()
"""Children that this process had before a test, as a browser that other tests keep open."""


def children():
    """Living and dead children that a test made, each as (pid, its words), with what those started.

    But for the helper that multiprocessing keeps, and what others' children start meanwhile, as a browser does.
    """
    import psutil

    own = [each for each in psutil.Process().children() if each.pid not in BEFORE]
    made = [each for each in own if "resource_tracker" not in " ".join(_words(each))]
    return [(each.pid, _words(each)) for first in made for each in (first, *_below(first))]


def _below(process):
    import psutil

    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _words(process):
    import psutil

    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ["gone"]


class Slow(nn.Module):
    """Takes its time, so that it is at work when it is killed."""

    def __init__(self, seconds=0.02):
        super().__init__()
        self.inner, self.seconds = nn.Linear(WIDTH, CLASSES), seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return self.inner(x)


def trained(teacher, batches, steps, each=lambda step: None):
    """Weights of a student after so many steps of descent towards a teacher's logits, and all that it was told."""
    torch.manual_seed(1)
    student = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    told = []
    while len(told) < steps:
        for batch in batches:
            each(len(told))
            outputs = teacher(batch).logits
            told.append((batch.keys.tolist(), outputs))
            optimizer.zero_grad()
            nn.functional.mse_loss(student(batch.side("student")), outputs).backward()
            optimizer.step()
            if len(told) == steps:
                break
    return student.state_dict(), told


class Odd:
    """Opens what answers with its request; with what cannot be written, or cannot be read, where it is told to."""

    def __call__(self):
        return nullcontext(self.answer)

    def answer(self, request):
        if request == "cannot be written":
            return lambda: request
        return Unreadable() if request == "cannot be read" else request


class Unreadable:
    """Raises where it is unpickled."""

    def __reduce__(self):
        return _raise, ("no memory left",)


class Unwritable:
    """Raises where it is pickled."""

    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


def _raise(text):
    raise RuntimeError(text)


class Causal(nn.Module):
    """A table and a head over it."""

    def __init__(self, classes=CLASSES, width=WIDTH):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(classes, width), nn.Linear(width, classes)

    def forward(self, ids):
        return self.head(self.table(ids))


@dataclass(frozen=True)
class Factoring(Plain):
    """As Plain, of a model that leaves its head out where that is wanted."""

    def forward(self, network, batch, needs):
        model, ids = network.module, batch.side(self.reader)
        return run_factored(model, lambda: model(ids), "head") if "factored" in needs.forms else Outputs(model(ids))
