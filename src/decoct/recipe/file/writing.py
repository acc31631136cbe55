"""Plain data into YAML that reads back to the same data."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from decoct.recipe.file.scalars import scalar

MAX_DEPTH = 50
MAX_KEY = 1000

_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./@+-]*( [A-Za-z0-9_./@+-]+)*$")
_WIDTH = 110


def dump(data: Mapping[str, Any]) -> str:
    """YAML that `read` turns into the same data, keys in the order given, short values on one line.

    >>> print(dump({"seed": 0, "note": "no: really", "steps": [{"use": "train", "budget": {"epochs": 2}}]}), end="")
    seed: 0
    note: "no: really"
    steps:
      - {use: train, budget: {epochs: 2}}
    """
    return "".join(_entries(data, 0)) or "{}\n"


def _entries(data: Mapping[str, Any], indent: int) -> Iterator[str]:
    assert indent <= 2 * MAX_DEPTH, "nested too deeply to be read again"
    for key, value in data.items():
        yield f"{' ' * indent}{_key(key)}:"
        yield from _block(value, indent, len(_key(key)) + 2)


def _block(value: Any, indent: int, used: int) -> Iterator[str]:
    nested = isinstance(value, Mapping) and bool(value) and all(isinstance(v, Mapping) and v for v in value.values())
    rows = isinstance(value, list | tuple) and any(isinstance(each, Mapping) and each for each in value)
    if not nested and not rows and indent + used + len(flat := _flow(value)) <= _WIDTH:
        yield f" {flat}\n"
    elif isinstance(value, Mapping) and value:
        yield "\n"
        yield from _entries(value, indent + 2)
    elif isinstance(value, list | tuple) and value:
        yield "\n"
        for each in value:
            yield from _item(each, indent + 2)
    else:
        yield f" {_flow(value)}\n"


def _item(value: Any, indent: int) -> Iterator[str]:
    flat = _flow(value)
    if indent + 2 + len(flat) <= _WIDTH or not isinstance(value, Mapping) or not value:
        yield f"{' ' * indent}- {flat}\n"
        return
    lines = "".join(_entries(value, indent + 2))
    yield f"{' ' * indent}- {lines[indent + 2 :]}"


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)}: {_flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    raise ValueError(f"{value!r} cannot be written to a recipe")


def _key(key: Any) -> str:
    if not isinstance(key, str) or len(text := _text(key)) > MAX_KEY:
        raise ValueError(f"{key!r} cannot be a key; it is text of at most {MAX_KEY} characters")
    return text


def _text(text: str) -> str:
    if _PLAIN.match(text) and not text.endswith("\n") and isinstance(scalar(text), str):
        return text
    return '"' + "".join(map(_escape, text)) + '"'


def _escape(character: str) -> str:
    code = ord(character)
    if character in '"\\':
        return "\\" + character
    if character == "\n":
        return "\\n"
    if character.isprintable() and (code < 0x7F or 0xA0 <= code <= 0xD7FF):
        return character
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
