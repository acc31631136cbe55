"""Settings from the command line, laid over those of the file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from decoct.errors import RecipeError, did_you_mean, dotted
from decoct.recipe.file.places import Located, Marked, Place, SettingPath, failure
from decoct.recipe.file.reading import read
from decoct.recipe.file.scalars import scalar

_PART = re.compile(r"\[(\d+)\]|\.?([^.\[\]=]+)")


def override(marked: Marked, overrides: Sequence[str]) -> Marked:
    """`marked` with settings from the command line, `key=value`.

    A key is a dotted path; items of a list go by number, by `name` or by `use`:
    `steps.student.objective.kd.temperature=2`. A value is read like plain YAML text (`1e-4`, `true`, `[1, 2]`,
    `{epochs: 3}`). A key that the file does not hold is added, so that validation names what is unknown.

    >>> marked = read("steps: [{use: train, name: teacher, budget: {epochs: 20}}]")
    >>> override(marked, ["steps.teacher.budget.epochs=3"]).data["steps"][0]["budget"]
    {'epochs': 3}
    """
    data = _copy(marked.data)
    places, values = dict(marked.places), dict(marked.values)
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise RecipeError(f"{text!r}: write key=value, such as seed=1 or data.path=DIR")
        place = Place(f"command line: {text}", 0, 0)
        path = _set(data, _parts(key, text), _override_value(value, text), place)
        places = {each: at for each, at in places.items() if each[: len(path)] != path}
        values = {each: at for each, at in values.items() if each[: len(path)] != path}
        places[path] = place
    return Marked(data, marked.name, places, values)


def _parts(key: str, text: str) -> list[str]:
    parts, end = [], 0
    for match in _PART.finditer(key):
        if match.start() != end:
            break
        parts.append(match[1] or match[2])
        end = match.end()
    if end != len(key) or key.startswith("."):
        raise RecipeError(f"{text!r}: {key!r} is no path; write it as steps.student.budget.epochs or steps[1].name")
    return parts


def _override_value(value: str, text: str) -> Any:
    if value[:1] in ("{", "[", "'", '"'):
        try:
            return read(f"value: {value}", "value").data["value"]
        except RecipeError as error:
            problems = [f"{text!r}: {problem.message}" for problem in error.problems]
            raise RecipeError("\n".join(problems)) from None
    try:
        return scalar(value)
    except ValueError as error:
        raise RecipeError(f"{text!r}: {error}") from None


def _set(data: Any, parts: Sequence[str], value: Any, place: Place) -> SettingPath:
    path: list[str | int] = []
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        at: str | int = part
        if isinstance(data, list):
            at = _index(data, part, path, place)
        elif not isinstance(data, dict):
            raise _unknown(path, f"is {data!r} and holds no {part!r}; give {dotted(path)}={{...}} as a whole", place)
        elif not last and data.get(part) is None:
            data[part] = {}
        path.append(at)
        if last:
            data[at] = value
        data = data[at]
    return tuple(path)


def _index(items: list[Any], part: str, path: Sequence[str | int], place: Place) -> int:
    if part.isdigit():
        if int(part) < len(items):
            return int(part)
        raise _unknown([*path, int(part)], f"there are {len(items)} items, counted from 0", place)
    for label in ("name", "use"):
        found = [index for index, each in enumerate(items) if isinstance(each, dict) and each.get(label) == part]
        if len(found) == 1:
            return found[0]
        if found:
            raise _unknown([*path, part], f"{len(found)} items have {label} {part}; choose one by number", place)
    labels = [
        str(each[label]) for each in items if isinstance(each, dict) for label in ("name", "use") if label in each
    ]
    raise _unknown([*path, part], f"unknown; {did_you_mean(part, set(labels))}", place)


def _unknown(path: Sequence[str | int], message: str, place: Place) -> RecipeError:
    return failure([Located(tuple(path), message, place)])


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(each) for key, each in value.items()}
    return [_copy(each) for each in value] if isinstance(value, list) else value
