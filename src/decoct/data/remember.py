"""Values kept beside frozen objects."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class Remembered(Generic[Value]):
    """Values made once for an object and a key, kept as long as the object lives.

    Objects are told apart by identity: the hash of a Spec covers all of its fields, too slow to take every step.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[weakref.ref[Any], dict[Hashable, Value]]] = {}

    def get(self, owner: Any, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value under `key` of `owner`, made now if it is the first time."""
        name = id(owner)
        entry = self._kept.get(name)
        if entry is None or entry[0]() is not owner:
            entry = weakref.ref(owner, lambda _: self._kept.pop(name, None)), {}
            self._kept[name] = entry
        values = entry[1]
        if key not in values:
            values[key] = make()
        return values[key]
