"""Where a run stands, and what all of its processes hold to be so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from decoct.training.guards import Origin
from decoct.training.processes import Processes


@dataclass
class Position:
    """Where the run stands; all of it is in the checkpoint. `batch` and `windows` count skipped ones too; `samples`
    are counted where the budget is in samples; `left_out`: what is wrong with samples that are left out, by key;
    `stopped`: why training ends before its budget."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    windows: int = 0
    samples: int = 0
    seconds: float = 0.0
    validated: int = -1
    validated_at: float = 0.0
    pending: bool = False
    clock: tuple[int, int, float] = (0, 0, 0.0)
    skips: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    large: bool = False
    stopped: str = ""

    def skipped(self) -> dict[str, Any] | None:
        """What is noted of the batch that stands here, which was not finite; None where nothing is."""
        return next((each for each in self.skips if (each["epoch"], each["batch"]) == (self.epoch, self.batch)), None)


@dataclass(frozen=True)
class Agreed:
    """What holds in all processes: the signal that asks to stop, whether a checkpoint is due, seconds of training."""

    asked: int | None = None
    save: bool = False
    seconds: float = 0.0


GO_ON = Agreed()


def agree(processes: Processes, asked: int | None, due: bool, seconds: float) -> Agreed:
    """Of several processes, the first one's clock and any one's signal."""
    if not processes.several:
        return Agreed(asked, due) if due or asked is not None else GO_ON
    own = (float(due), seconds) if processes.first else (0.0, 0.0)
    signal, save, passed = processes.most([float(asked or 0), *own])
    return Agreed(int(signal) or None, bool(save), passed)


class RolledBack(Exception):
    """A step was not finite: back to the last checkpoint, without the batches of `origin`."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
