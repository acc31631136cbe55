"""Errors that happened in another process, told here."""

from __future__ import annotations

import signal
import traceback
from dataclasses import dataclass

from decoct import errors

KNOWN = {
    each.__name__: each
    for each in (
        errors.RecipeError,
        errors.PathError,
        errors.CannotRebuild,
        errors.Diverged,
        errors.DataError,
        errors.ResourceError,
        errors.BudgetMissed,
        errors.IntegrityError,
        errors.TeacherChanged,
    )
}


@dataclass(frozen=True)
class Fault:
    """What an exception was: the name of its class, its text, and where it came from."""

    kind: str
    text: str
    trace: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Fault:
        """The fault that tells of `error`."""
        return cls(type(error).__name__, str(error), "".join(traceback.format_exception(error)))

    def error(self) -> Exception:
        """The exception to raise here: of the same class where it is one of decoct's, else a RuntimeError.

        >>> Fault("ZeroDivisionError", "division by zero").error()
        RuntimeError('in a worker: ZeroDivisionError: division by zero')
        >>> Fault("PathError", "no module 'a'").error()
        PathError("no module 'a'")
        """
        if self.kind in KNOWN:
            found: Exception = KNOWN[self.kind](self.text)
        else:
            found = RuntimeError(f"in a worker: {self.kind}: {self.text}")
        if self.trace:
            found.add_note(f"raised in another process:\n{self.trace}")
        return found


def ended(exitcode: int | None) -> str:
    """How a process ended, in words.

    >>> ended(-9), ended(3)
    ('was killed by SIGKILL', 'ended with code 3')
    """
    if exitcode is not None and exitcode < 0:
        return f"was killed by {signal.Signals(-exitcode).name}"
    return f"ended with code {exitcode}"
