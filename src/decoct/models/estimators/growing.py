"""How far the fitting of an estimator is, told while scikit-learn is at it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

Progress = Callable[[float, float, str], None]
EVERY = 0.5
"""Seconds between two looks."""


class Growing:
    """What can be counted of the fit that runs now: nothing, or so many of `total`."""

    def __init__(self) -> None:
        self._count: Callable[[], int] | None = None
        self._total = 0
        self._what = ""

    @contextlib.contextmanager
    def counted(self, count: Callable[[], int], total: int, what: str) -> Iterator[None]:
        """While the body runs, `count()` of `total` things called `what` are done."""
        self._count, self._total, self._what = count, total, what
        try:
            yield
        finally:
            self._count = None

    def now(self) -> tuple[int, int, str]:
        """How many are done, of how many, and what; zeros where nothing can be counted."""
        count = self._count
        return (0, 0, "") if count is None else (count(), self._total, self._what)


GROWING = Growing()
"""One at a time: a step fits one estimator after the other."""


@contextlib.contextmanager
def telling(progress: Progress, name: str, every: float = EVERY) -> Iterator[None]:
    """While the body fits, `progress` hears from a thread how far that is, or at least for how long it has been going.

    The thread only looks: what is fitted is the same.
    """
    ended, begin = threading.Event(), time.monotonic()

    def tell() -> None:
        while not ended.wait(every):
            done, total, what = GROWING.now()
            counted = f"{done} of at most {total} {what}, " if total else ""
            progress(done, total, f"{name}: {counted}{time.monotonic() - begin:.0f} s")

    thread = threading.Thread(target=tell, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
