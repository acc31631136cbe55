"""SIGTERM and Ctrl-C: finish the step, save, leave."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop and has saved its state; the same command continues it.

    `signal` is the number of the signal. A KeyboardInterrupt, so that no `except Exception` swallows it.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal = number


class Signals:
    """What was asked while `catching`: `asked` is the number of the signal or None.

    `at_once`: the body can be left at any instruction (validation), so the signal raises Interrupted there. A second
    signal raises it too.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.at_once = False

    def interrupted(self, text: str) -> Interrupted:
        """The exception to leave with."""
        assert self.asked is not None
        return Interrupted(f"stopped by {signal.Signals(self.asked).name} {text}", self.asked)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        again = self.asked is not None
        self.asked = number
        if self.at_once or again:
            raise self.interrupted("before the step was done; the same command continues from the last checkpoint")


@contextmanager
def catching(active: bool) -> Iterator[Signals]:
    """Notes SIGTERM and SIGINT while the body runs (only in the main thread); earlier handlers are put back."""
    noted = Signals()
    before: dict[signal.Signals, Any] = {}
    if active and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, noted.handle)
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
