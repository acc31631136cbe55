"""Atoms: each index of each axis of a network's tensors, and what joins them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Group:
    """Units that can go one by one. `axes[a]` holds, for each unit, which of the axis's indices go with it."""

    roots: tuple[Axis, ...]
    axes: Mapping[Axis, tuple[np.ndarray, ...]]
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
            self._frozen.append((np.unique(label), reason))

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

    def components(self) -> tuple[np.ndarray, dict[int, str]]:
        """The component of each atom, and of frozen components the first reason."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        left, right = [np.concatenate(each) for each in zip(*self._joined)] if self._joined else [np.zeros(0, int)] * 2
        ones = np.ones(len(left), bool)
        _, of = connected_components(coo_matrix((ones, (left, right)), shape=(self.count, self.count)), directed=False)
        reasons: dict[int, str] = {}
        for atoms, reason in self._frozen:
            for each in np.unique(of[atoms]).tolist():
                reasons.setdefault(each, reason)
        return of, reasons
