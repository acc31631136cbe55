"""Heads on their way to another process: each is written once, and afterwards by its number or its fingerprint."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from decoct.errors import DataError
from decoct.outputs import Factored, Head, Outputs

KEPT = 4
"""How many heads are remembered at a time: a teacher has one, an ensemble a few."""


@dataclass(frozen=True)
class _Known:
    """A head as it was when it was seen: the tensors themselves, so that none takes their place, and their versions."""

    head: Head
    versions: tuple[int, ...]
    name: Any

    def is_of(self, head: Head) -> bool:
        same = self.head.weight is head.weight and self.head.bias is head.bias
        after = (self.head.scale, self.head.softcap) == (head.scale, head.softcap)
        return same and after and self.versions == versions_of(head)


def versions_of(head: Head) -> tuple[int, ...]:
    """How often each tensor was changed in place."""
    return tuple(each._version for each in (head.weight, head.bias) if each is not None)


class Heads:
    """The last heads that were named, at most `KEPT`; one that was changed in place is another head."""

    def __init__(self) -> None:
        self._known: list[_Known] = []

    def name(self, head: Head) -> Any | None:
        """The name under which a head is known; None where it is not."""
        if head.weight.is_inference():  # it does not count its changes
            return None
        return next((each.name for each in self._known if each.is_of(head)), None)

    def keep(self, head: Head, name: Any) -> None:
        """Remembers a head; the oldest goes."""
        if not head.weight.is_inference():
            self._known = [*self._known, _Known(head, versions_of(head), name)][-KEPT:]

    def of(self, name: Any) -> Head | None:
        """The head of a name."""
        return next((each.head for each in self._known if each.name == name), None)


class Offered:
    """Heads that a server lets its clients fetch, by fingerprint."""

    def __init__(self) -> None:
        self._heads, self._alone = Heads(), threading.Lock()

    def fingerprint(self, head: Head) -> str:
        """By which a head may be fetched from now on."""
        with self._alone:
            found = self._heads.name(head)
            if found is None:
                found = fingerprint(head)
                self._heads.keep(head, found)
            return str(found)

    def head(self, name: str) -> Head:
        """A head that was offered; DataError for another."""
        with self._alone:
            found = self._heads.of(name)
        if found is None:
            raise DataError(f"no head has the fingerprint {name!r}; ask for outputs again")
        return found


class Fetched:
    """Heads that came from a server, each fetched once and checked against its fingerprint."""

    def __init__(self, fetch: Callable[[str], Head]) -> None:
        self._fetch, self._alone = fetch, threading.Lock()
        self._heads: dict[str, Head] = {}

    def __call__(self, name: str, scale: float, softcap: float | None) -> Head:
        """The head of a fingerprint with what is done after it; DataError where other numbers came."""
        key = json.dumps([name, scale, softcap])
        with self._alone:
            if key not in self._heads:
                found = replace(self._fetch(name), scale=scale, softcap=softcap)
                if fingerprint(found) != name:
                    raise DataError(f"the head {name[:12]} came with other numbers than were offered")
                self._heads = dict([*self._heads.items(), (key, found)][-KEPT:])
            return self._heads[key]


class Moved:
    """Heads on the device of the student, each moved once."""

    def __init__(self) -> None:
        self._moved: list[tuple[Head, torch.device, Head]] = []

    def __call__(self, outputs: Outputs, device: torch.device) -> Outputs:
        """Outputs on a device; the head of a factored distribution is the one that is there already."""
        factored = outputs.distribution
        if not isinstance(factored, Factored):
            return outputs.to(device)
        moved = replace(factored, hidden=factored.hidden.to(device), head=self._of(factored.head, device))
        return replace(replace(outputs, distribution=None).to(device), distribution=moved)

    def _of(self, head: Head, device: torch.device) -> Head:
        for own, where, there in self._moved:
            if own is head and where == device:
                return there
        made = head.map(lambda each: each.to(device))
        self._moved = [*self._moved, (head, device, made)][-KEPT:]
        return made


def fingerprint(head: Head) -> str:
    """SHA-256 of the numbers of weight and bias, their types and shapes.

    >>> fingerprint(Head(torch.zeros(2, 1))) == fingerprint(Head(torch.zeros(2, 1), scale=0.5))
    True
    """
    state = hashlib.sha256()
    for name, each in (("weight", head.weight), ("bias", head.bias)):
        if each is not None:
            state.update(f"{name} {each.dtype} {tuple(each.shape)}".encode())
            state.update(_raw(each))
    return state.hexdigest()


def _raw(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
