"""Small real pieces for the tests of training: a keyed source, a criterion written by hand, an update."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decoct.data.base import Source
from decoct.outputs import Batch, Outputs
from decoct.training.clock import Clock
from decoct.training.schedules import at


class Toy(Source):
    """`sizes` samples a batch; the numbers of each batch hang on epoch and position alone."""

    def __init__(self, sizes=(8,) * 7, features: int = 5, dtype=torch.float32, poison=()) -> None:
        self.sizes, self.features, self.dtype, self.poison = sizes, features, dtype, set(poison)
        self.epoch = self.batch = 0

    @property
    def length(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Batch]:
        while self.batch < len(self.sizes):
            made = self.make(self.epoch, self.batch)
            self.batch += 1
            yield made
        self.epoch, self.batch = self.epoch + 1, 0

    def make(self, epoch: int, batch: int) -> Batch:
        drawn = np.random.default_rng([epoch, batch])
        n = self.sizes[batch]
        x = torch.from_numpy(drawn.normal(size=(n, self.features))).to(self.dtype)
        if (epoch, batch) in self.poison:
            x = x * float("nan")
        labelled = torch.from_numpy(drawn.random(n) < 0.5)
        keys = drawn.integers(0, 2**63, n).astype(np.uint64)
        return Batch({"student": x}, torch.from_numpy(drawn.integers(0, 3, n)), labelled, keys, epoch)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.epoch, self.batch = state["epoch"], state["batch"]


class HandCriterion(nn.Module):
    """weight · KL on all samples + 0.5 · cross-entropy on labelled ones, each a mean over its items."""

    splittable = True

    def __init__(self, weight=0.7) -> None:
        super().__init__()
        self.weight = weight

    def items(self, batch: Batch) -> dict[str, Tensor | int]:
        return {"kd": len(batch), "cross_entropy": batch.labelled.sum()}

    def weights(self, clock: Clock) -> dict[str, float]:
        return {"kd": at(self.weight, clock), "cross_entropy": 0.5}

    def forward(self, student, teachers, batch, clock, shares=None):
        log_q = student.logits.log_softmax(-1)
        log_p = next(iter(teachers.values())).logits.log_softmax(-1)
        kd = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        picked = F.cross_entropy(student.logits, batch.target, reduction="none") * batch.labelled
        cross_entropy = picked.sum() / batch.labelled.sum().clamp(min=1)
        parts = {"kd": kd, "cross_entropy": cross_entropy}
        shares = shares or {}
        weights = self.weights(clock)
        total = sum(weights[name] * shares.get(name, 1.0) * part for name, part in parts.items())
        return total, {name: part.detach() for name, part in parts.items()}


def network(seed: int, dtype=torch.float32, dropout: float = 0.0) -> nn.Sequential:
    """5 -> 6 -> 3, with dropout if asked for (the random state then matters)."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Dropout(dropout), nn.Linear(6, 3)).to(dtype)


def predictor(module: nn.Module):
    """A module as a predictor."""
    return lambda batch: Outputs(module(batch.side("student")))


def equal_states(a, b) -> bool:
    """Whether two nested states are equal, tensors bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(equal_states(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal_states, a, b))
    return a == b


def timeless(records) -> list[dict]:
    """Log records without their times."""
    return [{key: value for key, value in record.items() if key != "time"} for record in records]
