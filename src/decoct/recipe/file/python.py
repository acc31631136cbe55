"""A Spec as the Python that makes it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from decoct.spec import Spec

_WIDTH = 100


def as_python(spec: Spec, name: str = "recipe") -> str:
    """Python source that binds `name` to an equal Spec; settings at their defaults are left out.

    >>> from decoct.training.schedules import Linear
    >>> print(as_python(Linear(8, 2), "temperature"), end="")
    from decoct import Linear
    <BLANKLINE>
    temperature = Linear(start=8.0, end=2.0)
    """
    surface = importlib.import_module("decoct")
    public, hidden = set(), set()
    for each in set(_classes(spec)):
        if each.__name__ in dir(surface) and getattr(surface, each.__name__) is each:
            public.add(each.__name__)
        else:
            hidden.add(f"from {each.__module__} import {each.__name__}")
    lines = sorted(hidden)
    if public:
        lines.insert(0, _import(sorted(public)))
    return "\n".join(lines) + f"\n\n{name} = {_source(spec, 0, len(name) + 3)}\n"


def _import(names: Sequence[str]) -> str:
    line = f"from decoct import {', '.join(names)}"
    return line if len(line) <= _WIDTH else "from decoct import (\n" + "".join(f"    {n},\n" for n in names) + ")"


def _classes(value: Any) -> Iterator[type[Spec]]:
    if isinstance(value, Spec):
        yield type(value)
        for _, each in _written(value):
            yield from _classes(each)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _classes(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _classes(each)


def _written(spec: Spec) -> Iterator[tuple[str, Any]]:
    """The fields of a Spec that differ from their defaults, as in its repr."""
    for name, field in type(spec).model_fields.items():
        value = getattr(spec, name)
        if field.is_required() or value != field.get_default(call_default_factory=True):
            yield name, value


def _source(value: Any, indent: int, used: int) -> str:
    """`value` as source: on one line where it fits, else one part a line."""
    flat = _flat(value)
    if indent + used + len(flat) <= _WIDTH:
        return flat
    inner = indent + 4
    if isinstance(value, Spec):
        opening, closing = f"{type(value).__name__}(", ")"
        parts = [f"{name}={_source(each, inner, len(name) + 2)}" for name, each in _written(value)]
    elif isinstance(value, Mapping):
        opening, closing = "{", "}"
        parts = [f"{key!r}: {_source(each, inner, len(repr(key)) + 3)}" for key, each in value.items()]
    elif isinstance(value, list | tuple):
        opening, closing = ("(", ")") if isinstance(value, tuple) else ("[", "]")
        parts = [_source(each, inner, 1) for each in value]
    else:
        return flat
    rows = "".join(f"{' ' * inner}{part},\n" for part in parts)
    return f"{opening}\n{rows}{' ' * indent}{closing}"


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_flat(each)}" for key, each in value.items()) + "}"
    if isinstance(value, Spec):
        return f"{type(value).__name__}({', '.join(f'{name}={_flat(each)}' for name, each in _written(value))})"
    if isinstance(value, tuple):
        return f"({', '.join(map(_flat, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(map(_flat, value))}]"
    return repr(str(value)) if type(value).__module__.startswith("pathlib") else repr(value)
