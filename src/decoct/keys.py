"""What classes from outside decoct add to a step's key: the source of their packages."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from decoct.spec import Spec


def plugin_sources(specs: Iterable[Spec]) -> dict[str, str]:
    """SHA-256 over the Python files of each package, other than decoct, whose Specs stand in `specs` at any depth."""
    packages = {type(each).__module__.partition(".")[0] for spec in specs for each in _within(spec)}
    return {name: _source(name) for name in sorted(packages - {"decoct"})}


def _within(value: Any) -> Iterator[Spec]:
    if isinstance(value, Spec):
        yield value
        for name in type(value).model_fields:
            yield from _within(getattr(value, name))
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _within(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _within(each)


def _source(package: str) -> str:
    found = importlib.util.find_spec(package)
    folders = [Path(each) for each in (found.submodule_search_locations or ())] if found is not None else []
    files = [path for folder in folders for path in folder.rglob("*.py")]
    if not files and found is not None and found.origin is not None and Path(found.origin).is_file():
        files = [Path(found.origin)]
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()
