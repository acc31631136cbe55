"""What a person sees of a run on the terminal: progress with the time left, tables, errors."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape as without_markup
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from decoct.errors import DecoctError, RecipeError, dotted, printable

SECONDS_BETWEEN_LINES = 30.0


def escape(text: str) -> str:
    """A text for rich that says what it says: neither its markup nor its control characters do anything."""
    return without_markup(printable(text))


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows with the same keys as a table without frames; numbers to the right."""
    shown = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for index, title in enumerate(rows[0] if rows else ()):
        number = all(str(row.get(title, ""))[:1].isdigit() for row in rows)
        shown.add_column(escape(str(title)), justify="right" if number and index else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(escape(str(each)) for each in row.values()))
    return shown


class Watcher:
    """Shows a run's events: a bar with the time left on a terminal, lines now and then elsewhere, nothing if quiet."""

    def __init__(self, *, quiet: bool, console: Console | None = None) -> None:
        self.quiet = quiet
        self.console = console or Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self.task: TaskID | None = None
        self.spoke = 0.0

    def __enter__(self) -> Watcher:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Takes one event of the run."""
        if self.quiet:
            return
        if event.get("event") in ("record", "finished"):
            return
        name = f"{event['step']}" + (f" (seed {event['seed']})" if event.get("seed") else "")
        kind = event.get("event")
        if kind == "started":
            self._begin(name)
        elif kind == "progress":
            self._advance(name, float(event["done"]), float(event["total"]), str(event.get("text", "")))
        elif kind == "skipped":
            self._end(f"{name}: skipped, {event.get('why', 'unchanged')}")
        elif kind == "done":
            scores = ", ".join(f"{key} {value:.4g}" for key, value in list(event.get("scores", {}).items())[:2])
            found = event.get("summary") or (f"validation {scores}" if scores else "")
            stopped = f"stopped early: {event['stopped']}" if event.get("stopped") else ""
            self._end(", ".join(filter(None, (f"{name}: {event.get('wall_s', 0.0):.1f} s", found, stopped))))

    def _begin(self, name: str) -> None:
        self.spoke = time.monotonic()
        self.task = self.progress.add_task(escape(name), total=None)

    def _advance(self, name: str, done: float, total: float, text: str) -> None:
        if self.task is None:
            self._begin(name)
        assert self.task is not None
        described = escape(f"{name} {text}".strip())
        self.progress.update(self.task, completed=done, total=total if total > 0 else None, description=described)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.spoke > SECONDS_BETWEEN_LINES:
            self.spoke = now
            share = f" {100 * done / total:.0f} %" if total > 0 else ""
            self.console.print(f"{described}{share}", highlight=False)

    def _end(self, line: str) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)
            self.task = None
        self.console.print(escape(line), highlight=False, soft_wrap=True)


PIPED_WIDTH = 80


def width() -> int:
    """Columns to write in: those of the terminal, or what COLUMNS says, or 80 where neither does."""
    return max(20, shutil.get_terminal_size((PIPED_WIDTH, 24)).columns)


def wrapped(text: str, indent: int = 0) -> str:
    """Paragraphs as lines that fit; what is indented, or an example, stays as it is.

    >>> wrapped("one line", 4)
    '    one line'
    """
    done = []
    for paragraph in text.split("\n\n"):
        kept = paragraph.lstrip().startswith(">>>") or any(line.startswith(" ") for line in paragraph.splitlines())
        flat = paragraph if kept else " ".join(paragraph.split())
        space = " " * indent
        done.append(flat if kept else textwrap.fill(flat, width(), initial_indent=space, subsequent_indent=space,
                                                    break_long_words=False, break_on_hyphens=False))  # fmt: skip
    return "\n\n".join(done)


def print_shown(shown: Sequence[Any]) -> None:
    """Lines and tables on stdout; lines are not wrapped."""
    console = Console(width=None if sys.stdout.isatty() else width())
    for each in shown:
        if isinstance(each, str):
            sys.stdout.write(printable(each) + "\n")
        else:
            with console.capture() as caught:
                console.print(each)
            sys.stdout.write("".join(f"{line.rstrip()}\n" for line in caught.get().splitlines()))


def error_record(error: DecoctError, code: int) -> dict[str, Any]:
    """An error as `--json` gives it."""
    record: dict[str, Any] = {"type": type(error).__name__, "message": str(error), "exit_code": code}
    if isinstance(error, RecipeError):
        record["problems"] = [
            {"path": dotted(each.path), "message": each.message, "place": str(getattr(each, "place", ""))}
            for each in error.problems
        ]
    return {"error": record}


def print_json(record: Mapping[str, Any]) -> None:
    """One JSON object on stdout, in ASCII."""
    sys.stdout.write(json.dumps(record, indent=1, default=str).replace("\x7f", "\\u007f") + "\n")
