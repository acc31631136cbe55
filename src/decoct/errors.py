"""Every error that decoct raises on purpose.

```
DecoctError                 exit  what is wrong
├── RecipeError (ValueError)   2  a setting: its name, its value, what is allowed, what to do
│   ├── PathError              2  a module path that the model does not have
│   ├── CannotRebuild          2  a model whose structure cannot be written down
│   ├── ForwardFailed          2  a network that does not take a batch
│   └── Diverged               2  training left the finite numbers and was given up
├── DataError (ValueError)     3  data that is absent, empty or malformed
├── ResourceError              4  disk, memory, a missing package, a folder held by another process
├── BudgetMissed               5  an artifact larger, slower or worse than the budget allows
└── IntegrityError             6  a file that differs from its checksum
    └── TeacherChanged         6  a teacher that became another while it taught
```
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
"""Characters that move the cursor, colour, hide or turn round what a terminal shows, and halves of characters."""


def printable(text: str) -> str:
    r"""The text as a terminal may show it: control characters but tab and line end are written out, as are those that
    change the direction of writing or take no room, and bytes of file names that are no UTF-8.

    >>> print(printable("a\x1b[2J\u202eb\udcff"))
    a\x1b[2J\u202eb\udcff
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class DecoctError(Exception):
    """The root of all errors raised on purpose; `exit_code` is what the command returns.

    Its text may quote what stood in a file or an answer: `str` gives it as a terminal may show it.
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(_ERRNO.sub("", message))

    def __str__(self) -> str:
        return printable(super().__str__())


def in_words(error: OSError) -> str:
    """What the operating system refused, for people: which file, and why.

    >>> in_words(FileExistsError(17, "File exists", "runs/a"))
    'runs/a: a file is there, where a folder is needed; give another path'
    >>> in_words(OSError(28, "No space left on device"))
    'No space left on device'
    """
    reason = next((words for kind, words in _REASONS if isinstance(error, kind)), error.strerror or str(error))
    reason = "the file system is read-only; give another path" if error.errno == errno.EROFS else reason
    return f"{error.filename}: {reason}" if error.filename is not None else _ERRNO.sub("", error.strerror or str(error))


_ERRNO = re.compile(r"\[(Errno|WinError) -?\d+\] ")
_REASONS: tuple[tuple[type[OSError], str], ...] = (
    (FileExistsError, "a file is there, where a folder is needed; give another path"),
    (NotADirectoryError, "a file is there, where a folder is needed; give another path"),
    (IsADirectoryError, "a folder is there, where a file is needed; give another path"),
    (PermissionError, "reading or writing there is not allowed; change its permissions or give another path"),
    (FileNotFoundError, "nothing is there"),
)


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one setting; `path` leads to it from the root, as `("steps", 1, "objective")`."""

    path: tuple[str | int, ...]
    message: str

    def __str__(self) -> str:
        where = dotted(self.path)
        return f"{where}: {self.message}" if where else self.message


class RecipeError(DecoctError, ValueError):
    """A setting that cannot be used; `problems` lists every one found, the root cause first."""

    exit_code = 2

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class PathError(RecipeError):
    """A module path that the model does not have."""


class CannotRebuild(RecipeError):
    """A model that its own description would not bring back."""


class ForwardFailed(RecipeError):
    """A network whose forward pass raised on a batch."""

    def at(self, place: str) -> ForwardFailed:
        """The same, with when it happened."""
        return ForwardFailed(f"{place}: {self}", self.problems)


class Diverged(RecipeError):
    """Training produced non-finite numbers more often than is allowed."""


class DataError(DecoctError, ValueError):
    """Data that is absent, empty or malformed."""

    exit_code = 3


class ResourceError(DecoctError):
    """Disk, memory, a missing package, or a folder that another process holds."""

    exit_code = 4


class BudgetMissed(DecoctError):
    """An artifact that is larger, slower or worse than its budget allows."""

    exit_code = 5


class IntegrityError(DecoctError):
    """A file that differs from its recorded checksum."""

    exit_code = 6


class TeacherChanged(IntegrityError):
    """A teacher that became another while it taught: its answers are not those of one model."""


def nearest(name: str, options: Iterable[str], count: int = 3) -> list[str]:
    """The `options` most like `name`, best first.

    >>> nearest("temprature", ["weight", "temperature", "name"])
    ['temperature']
    """
    return difflib.get_close_matches(name, list(options), n=count, cutoff=0.55)


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """A sentence that ends an error: the nearest names, or all of them where none is near.

    >>> did_you_mean("kdd", ["kd", "cross_entropy"])
    'did you mean kd?'
    >>> did_you_mean("zzz", ["kd", "cross_entropy"])
    'allowed: cross_entropy, kd'
    """
    known = sorted(options)
    close = nearest(name, known)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"allowed: {', '.join(known)}" if known else "nothing is allowed here"


def dotted(path: Sequence[str | int]) -> str:
    """A path as it is written in messages.

    >>> dotted(("steps", 1, "objective", 0, "temperature"))
    'steps[1].objective[0].temperature'
    """
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
