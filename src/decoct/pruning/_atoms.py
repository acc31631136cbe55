"""Atoms: each index of each axis of a network's tensors, and what joins them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from torch import Tensor, nn


class _Any:
    """The axis of a tensor that is made to measure, as the zeros that a recurrent layer starts from."""


ANY = _Any()


Label = np.ndarray | _Any | None


Labels = list[Label]


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor, by the tensor's first name in the module."""

    tensor: str
    dim: int


class Units(Sequence[np.ndarray]):
    """Which indices of an axis go with each unit, in one array: `flat`, of which each unit has `counts` in turn.

    >>> units = Units(np.array([4, 5, 7]), np.array([2, 0, 1]))
    >>> [each.tolist() for each in units], units.owners.tolist(), units.of(np.array([2, 0])).tolist()
    ([[4, 5], [], [7]], [0, 0, 2], [7, 4, 5])
    """

    def __init__(self, flat: np.ndarray, counts: np.ndarray) -> None:
        self.flat, self.counts = flat, counts
        self.starts = np.cumsum(counts) - counts

    @classmethod
    def made(cls, units: Sequence[np.ndarray]) -> Units:
        """The same of arrays, one for each unit."""
        if isinstance(units, cls):
            return units
        return cls(np.concatenate(list(units)), np.array([len(each) for each in units]))

    @overload
    def __getitem__(self, at: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[np.ndarray]: ...
    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        return self.flat[self.starts[at] : self.starts[at] + self.counts[at]]

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def owners(self) -> np.ndarray:
        """The unit of each entry of `flat`."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def of(self, units: np.ndarray) -> np.ndarray:
        """The indices of some units, in their order."""
        return self.flat[ranges(self.starts[units], self.counts[units])]


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Ranges of whole numbers one after the other.

    >>> ranges(np.array([5, 1]), np.array([2, 3])).tolist()
    [5, 6, 1, 2, 3]
    """
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()))


@dataclass(frozen=True)
class Group:
    """Units that can go one by one. `axes[a]` holds, for each unit, which of the axis's indices go with it."""

    roots: tuple[Axis, ...]
    axes: Mapping[Axis, Sequence[np.ndarray]]
    size: int
    frozen: str = ""


class Atoms:
    """The atoms of a module's tensors, what joins them, and which are frozen and why."""

    def __init__(self, module: nn.Module) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.starts: dict[Axis, int] = {}
        self._labels: dict[int, Labels] = {}
        self._alive: list[Tensor] = []
        self._joined: list[tuple[np.ndarray, np.ndarray]] = []
        self._frozen: list[tuple[np.ndarray, str]] = []
        self.count = 0
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            self.tensors[name] = tensor
            self.put(tensor, [self._axis(name, dim, size) for dim, size in enumerate(tensor.shape)])

    def _axis(self, name: str, dim: int, size: int) -> Label:
        if size < 2:
            return None
        self.starts[Axis(name, dim)] = self.count
        self.count += size
        return np.arange(self.count - size, self.count)

    def of(self, tensor: Tensor) -> Labels:
        """The atoms along each axis; None where an axis has none."""
        return self._labels.get(id(tensor), [None] * tensor.dim())

    def put(self, tensor: Tensor, labels: Labels) -> None:
        """Says what stands along a tensor's axes; the tensor is kept alive, so that its id stays its own."""
        assert len(labels) == tensor.dim()
        self._alive.append(tensor)
        self._labels[id(tensor)] = [None if size < 2 else label for size, label in zip(tensor.shape, labels)]

    def freeze(self, label: Label, reason: str) -> None:
        """The size of this axis must stay."""
        if isinstance(label, np.ndarray):
            self._frozen.append((label, reason))

    def join(self, *labels: Label, reason: str = "it meets something of a fixed size") -> Label:
        """One axis that several tensors share; frozen where one of them brings a size that nothing changes."""
        arrays = [each for each in labels if isinstance(each, np.ndarray)]
        if not arrays:
            return None if any(each is None for each in labels) else ANY
        for each in arrays[1:]:
            if len(each) == len(arrays[0]):
                self._joined.append((arrays[0], each))
            else:
                self.freeze(each, reason)
                self.freeze(arrays[0], reason)
        if any(each is None for each in labels):
            self.freeze(arrays[0], reason)
        return arrays[0]

    def components(self) -> tuple[np.ndarray, np.ndarray]:
        """The component of each atom, in the order of their first atoms, and of each component its first reason to be
        frozen (empty where there is none)."""
        left, right = [np.concatenate(each) for each in zip(*self._joined)] if self._joined else [np.zeros(0, int)] * 2
        of = connected(self.count, left, right)
        reasons = np.full(int(of.max(initial=-1)) + 1, "", object)
        for label, reason in self._frozen:
            found = of[label]
            reasons[found[reasons[found] == ""]] = reason
        return of, reasons


def connected(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The component of each of `count` nodes under edges from `left` to `right`, numbered by their first nodes.

    Each round a component takes the lowest number that it meets, and paths to that are made short.

    >>> connected(6, np.array([4, 2]), np.array([1, 5])).tolist()
    [0, 1, 2, 3, 1, 2]
    """
    lowest = np.arange(count)
    while len(left):
        mine, theirs = lowest[left], lowest[right]
        apart = mine != theirs
        left, right, mine, theirs = left[apart], right[apart], mine[apart], theirs[apart]
        np.minimum.at(lowest, np.maximum(mine, theirs), np.minimum(mine, theirs))
        while not np.array_equal(lowest, shorter := lowest[lowest]):
            lowest = shorter
    return np.unique(lowest, return_inverse=True)[1]
