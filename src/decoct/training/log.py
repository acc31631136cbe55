"""The log of a run: one JSON record a line, cut back exactly when the run goes back."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from decoct.artifact import parse_json, unless_full
from decoct.training.guards import Origin

Noted = tuple[int, int, Sequence[Any]]
"""Where a step came from, as noted at each: epoch, batch, keys of each batch of its window."""


LARGE, SPIKE = 1e12, 1000.0
"""Losses beyond the first are always called large, those up to the second never, whatever the others are."""


class Log:
    """Records in memory and, where there is a work folder, in `log.jsonl`."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []
        self._file = None
        if path is not None:
            with unless_full(path):
                self._file = path.open("ab", buffering=0)  # nothing is kept back that a full disk would refuse later

    def write(self, record: Mapping[str, Any]) -> None:
        """Adds a record; numbers that are not finite become None."""
        kept = _plain(record)
        self.records.append(kept)
        if self._file is not None:
            self._append(json.dumps(kept, allow_nan=False).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        assert self._file is not None
        assert self.path is not None
        with unless_full(self.path, len(line)):
            while line:
                line = line[self._file.write(line) :]

    def position(self) -> dict[str, int]:
        """Records and bytes so far, which are on disk when this returns."""
        if self._file is None:
            return {"records": len(self.records), "bytes": 0}
        os.fsync(self._file.fileno())
        return {"records": len(self.records), "bytes": os.fstat(self._file.fileno()).st_size}

    def reaches(self, position: Mapping[str, int]) -> bool:
        """Whether the file is at least as long as it was at `position`."""
        return self.path is None or self.path.stat().st_size >= position["bytes"]

    def cut(self, position: Mapping[str, int]) -> None:
        """Goes back to `position`; what was logged after it is gone."""
        if self._file is None or self.path is None:
            del self.records[position["records"] :]
            return
        os.truncate(self.path, position["bytes"])
        lines = self.path.read_text(encoding="utf-8").splitlines()
        self.records = [parse_json(line, str(self.path), dict[str, Any]) for line in lines]

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


class Means:
    """Means of what steps return, without waiting for the device at each step.

    `add` keeps tensors of an accelerator as they are; `settle` reads them, all at once; `take` gives the means and
    starts anew. The numbers belong to the checkpoint, so that a log line is the same whether or not the run was killed
    in between.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[dict[str, Any], Noted]] = []
        self._steps: list[dict[str, float]] = []
        self.last_finite: float | None = None
        self._usual: float | None = None
        self.spikes: list[dict[str, Any]] = []

    def add(self, values: Mapping[str, Any], origin: Noted) -> None:
        """Keeps what one step returned, without graphs, which would otherwise live until the next record."""
        self._pending.append(({name: _unread(value) for name, value in values.items()}, origin))

    def settle(self) -> Origin | None:
        """Reads the tensors kept since the last time; returns the origin of the first step that was not finite."""
        pending, self._pending = self._pending, []
        found = [each for values, _ in pending for each in values.values() if isinstance(each, Tensor)]
        tensors = [each.reshape(()) if each.ndim else each for each in found]
        numbers = iter(torch.stack(tensors).tolist() if tensors else [])
        bad = None
        for values, origin in pending:
            read = {k: float(next(numbers) if isinstance(v, Tensor) else v) for k, v in values.items()}
            sound = read.pop("finite", 1.0) == 1.0 and math.isfinite(read.get("loss", 0.0))
            if not sound and bad is None:
                bad = origin
            elif bad is None:
                self.last_finite = read.get("loss", self.last_finite)
                self._look_for_spike(read.get("loss"), origin)
            self._steps.append(read)
        return None if bad is None else Origin.of(bad)

    def _look_for_spike(self, loss: float | None, origin: Noted) -> None:
        """Notes a loss that is finite and beyond all reason, or 10,000 times what the others are."""
        if loss is None:
            return
        size = abs(loss)
        if size > LARGE or (self._usual is not None and size > max(SPIKE, 10_000 * self._usual)):
            self.spikes.append({"kind": "large", "what": "loss", "value": loss, **Origin.of(origin).record()})
        usual = min(size, LARGE) if self._usual is None else self._usual
        self._usual = 0.9 * usual + 0.1 * min(size, 10 * usual)

    def take(self) -> dict[str, float]:
        """The mean of each value over the steps since the last `take` (those that have it); settle first."""
        steps, self._steps = self._steps, []
        names = dict.fromkeys(name for step in steps for name in step)
        columns = {name: [step[name] for step in steps if name in step] for name in names}
        return {name: sum(column) / len(column) for name, column in columns.items()}

    def __len__(self) -> int:
        return len(self._steps) + len(self._pending)

    def state_dict(self) -> dict[str, Any]:
        """The numbers of the steps that are in no record yet; settle first."""
        assert not self._pending
        return {
            "steps": self._steps,
            "last_finite": self.last_finite,
            "usual": self._usual,
            "spikes": self.spikes,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back."""
        self._pending = []
        self._steps = [dict(each) for each in state["steps"]]
        self.last_finite = state["last_finite"]
        self._usual, self.spikes = state.get("usual"), [dict(each) for each in state.get("spikes", [])]


def last_told(log: Log, metric: str | None) -> str:
    """The last loss, and the last score called `metric` where there is one, as the end of a line of progress."""
    last: dict[str, dict[str, Any]] = {}
    for each in reversed(log.records):
        last.setdefault(each["kind"], each)
        if {"train", "validation"} <= last.keys():
            break
    loss, scores = last.get("train", {}).get("loss"), last.get("validation", {}).get("scores", {})
    told = {"loss": loss, f"validation {metric}": scores.get(metric)}
    return "".join(f", {name} {value:.4g}" for name, value in told.items() if value is not None)


def _unread(value: Any) -> Any:
    """A number where reading it waits for nothing, which is on the CPU; a tensor elsewhere."""
    if not isinstance(value, Tensor):
        return value
    return value.item() if value.is_cpu else value.detach()


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | int | None):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
