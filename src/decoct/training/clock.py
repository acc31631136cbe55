"""Clock: where a training run stands, as schedules and terms see it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """`step` optimizer steps done, `epoch` epochs done, `progress` of the whole budget in [0, 1]."""

    step: int = 0
    epoch: int = 0
    progress: float = 0.0
