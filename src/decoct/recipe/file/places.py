"""Places of settings, and errors that name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from decoct.errors import Problem, RecipeError, nearest

SettingPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Place:
    """Where a setting was written: `name:line:column`, counted from 1; line 0 for the command line."""

    name: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.name}:{self.line}:{self.column}" if self.line else self.name


NOWHERE = Place("", 0, 0)


@dataclass(frozen=True)
class Located(Problem):
    """A Problem and its place in the file."""

    place: Place = NOWHERE

    def __str__(self) -> str:
        return f"{self.place}: {super().__str__()}"


@dataclass(frozen=True)
class Marked:
    """Plain data and, for every path in it, the place of its key (of the item itself in a list); `values`: that of
    its value."""

    data: dict[str, Any]
    name: str
    places: Mapping[SettingPath, Place]
    values: Mapping[SettingPath, Place] = field(default_factory=dict)

    def place(self, path: Sequence[str | int]) -> Place:
        """The place of `path`, or of the nearest setting around it that was written."""
        parts = tuple(path)
        while parts and parts not in self.places:
            parts = parts[:-1]
        return self.places.get(parts, Place(self.name, 1, 1))

    def place_of(self, problem: Problem) -> Place:
        """The place of what is wrong: of the value where `use` names nothing, else of the setting."""
        if problem.path[-1:] == ("use",) and not problem.message.startswith("unknown"):
            return self.values.get(problem.path, self.place(problem.path))
        return self.place(problem.path)


def locate(problems: Sequence[Problem], marked: Marked) -> RecipeError:
    """The RecipeError with one line a problem, `recipe.yaml:12:5: steps[1].objective[0].temprature: unknown; ...`.

    Unknown keys come first, then missing ones, then values, each by line. A missing key is left out where an unknown
    key beside it is nearly its name: one mistake, one error. Paths that validation lengthened (a list that became
    `terms`) are put back to what was written.
    """
    located = []
    for problem in problems:
        path, message = _misspelt_use(_written(problem.path, marked.data), problem.message, marked.data)
        place = problem.place if isinstance(problem, Located) else marked.place_of(Problem(path, message))
        located.append(Located(path, message, place))
    unknown = [each.path for each in located if each.message.startswith("unknown")]
    kept = [each for each in dict.fromkeys(located) if not _follows(each, unknown)]
    kept.sort(key=lambda each: (_rank(each), each.place.line, each.place.column))
    return failure(kept)


def _misspelt_use(path: SettingPath, message: str, data: Any) -> tuple[SettingPath, str]:
    """Where `use` is missing and a key is nearly it, that key is the mistake."""
    if not message.startswith("`use` is missing"):
        return path, message
    for part in path:
        data = data[part]
    close = [key for key in data if nearest(key, ["use"])]
    return ((*path, close[0]), "unknown; did you mean use?") if close else (path, message)


def failure(problems: Sequence[Located]) -> RecipeError:
    return RecipeError("\n".join(map(str, problems)), problems)


def _rank(problem: Problem) -> int:
    return 0 if problem.message.startswith("unknown") else 1 if problem.message.startswith("missing") else 2


def _follows(problem: Problem, unknown: Sequence[SettingPath]) -> bool:
    if not problem.path or not problem.message.startswith("missing"):
        return False
    beside = [str(path[-1]) for path in unknown if path[:-1] == problem.path[:-1]]
    return bool(nearest(str(problem.path[-1]), beside))


def _written(path: SettingPath, data: Any) -> SettingPath:
    """`path` without the parts that validation inserted: `terms` of a list, tags of unions, marks of dict keys."""
    found: list[str | int] = []
    for part in path:
        inside = isinstance(data, dict) and part in data
        if inside or (isinstance(data, list) and isinstance(part, int) and part < len(data)):
            data = data[part]
        elif isinstance(data, dict) and isinstance(part, str) and part.isidentifier():
            data = {}
        else:
            continue
        found.append(part)
    return tuple(found)
