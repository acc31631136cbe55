"""The words of a command line, and the signals that end what they ask for."""

from __future__ import annotations

import gc
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from decoct.errors import DecoctError, nearest, printable

FLAGS = ("--json", "--quiet", "--offline", "--version")


class Stopped(DecoctError):
    """The command was stopped by a signal; its number makes the exit code."""

    def __init__(self, interrupt: KeyboardInterrupt) -> None:
        super().__init__(str(interrupt) or "stopped; the same command continues")
        self.exit_code = 128 + int(getattr(interrupt, "signal", signal.SIGINT))


class Terminated(KeyboardInterrupt):
    """SIGTERM outside of training, which has its own way of stopping."""

    signal = signal.SIGTERM


@contextmanager
def stopping() -> Iterator[None]:
    """SIGTERM leaves the body as Ctrl-C does: by an exception, so that locks and drafts are cleared away."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def importing() -> Iterator[None]:
    """Imports in the body, which make next to no garbage, are not searched for it, then or later; once a process."""
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def traces_printable() -> None:
    """From here on tracebacks hold no control characters of what they quote."""

    def trace(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        sys.stderr.write(printable("".join(traceback.format_exception(kind, error, where))))

    sys.excepthook = trace


@contextmanager
def noting(*, quiet: bool) -> Iterator[None]:
    """Warnings in the body become notes of one line on stderr, without files, lines and code; none where `quiet`."""

    def note(message: Warning | str, *where: Any, **more: Any) -> None:
        if not quiet:
            print(DecoctError(f"note: {' '.join(str(message).split())}"), file=sys.stderr)

    before, warnings.showwarning = warnings.showwarning, note
    try:
        yield
    finally:
        warnings.showwarning = before


def in_front(words: Sequence[str]) -> list[str]:
    """The words with the global options moved before the command.

    >>> in_front(["list", "--json", "tasks", "--plugin", "mine"])
    ['--json', '--plugin', 'mine', 'list', 'tasks']
    """
    front: list[str] = []
    rest: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if word in FLAGS or word.startswith("--plugin="):
            front.append(word)
        elif word == "--plugin":
            front += [word, *([following] if (following := next(remaining, None)) is not None else [])]
        elif word == "--":
            rest += [word, *remaining]
        else:
            rest.append(word)
    return [*front, *rest]


OTHERS = {
    "benchmark": "run",
    "compare": "report",
    "compress": "apply",
    "continue": "run",
    "convert": "apply",
    "create": "init",
    "describe": "explain",
    "evaluate": "verify",
    "export": "apply",
    "infer": "predict",
    "info": "explain",
    "inspect": "show",
    "learn": "run",
    "lint": "check",
    "ls": "list",
    "new": "init",
    "page": "report",
    "prune": "apply",
    "quantize": "apply",
    "resume": "run",
    "start": "run",
    "student": "distill",
    "summary": "report",
    "test": "verify",
    "train": "run",
    "validate": "check",
    "version": "--version",
}
"""What other programs call a thing, and which command does it here."""


def instead(message: str, commands: Sequence[str]) -> str:
    """What the parser says of a command that does not exist, with the right one; other messages as they are.

    >>> instead("No such command 'trian'.", ["run", "report"])
    "there is no command 'trian'; did you mean run (for train)?"
    >>> instead("No such command 'rnu'.", ["run", "report"])
    "there is no command 'rnu'; did you mean run?"
    """
    found = re.match(r"No such command '(.*?)'", message)
    if found is None:
        return message
    others = {word: name for word, name in OTHERS.items() if word not in commands}
    close = nearest(found[1].lower(), [*commands, *others], count=1)
    said = [f"{others[each]} (for {each})" if each in others and each != found[1] else others.get(each, each)
            for each in close]  # fmt: skip
    known = f"did you mean {said[0]}?" if said else f"allowed: {', '.join(sorted(commands))}"
    return f"there is no command {found[1]!r}; {known}"
