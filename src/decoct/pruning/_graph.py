"""The dependency graph: which rows, columns and entries of a network's tensors go together.

Each index of each axis of each parameter and buffer is an atom. The network runs once on a few samples; every operator
says which axes of what it takes and gives stand for each other, and joins their atoms. What is connected in the end can
only go as one. Where the size of an axis must stay (outputs, inputs, views that cut it up), its atoms are frozen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from decoct.compression import Evidence
from decoct.models.modes import evaluating, plain_kernels
from decoct.pruning._rules import ANY, Label, Labels, follow


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
        left, right = [np.concatenate(each) for each in zip(*self._joined)] if self._joined else [np.zeros(0, int)] * 2
        ones = np.ones(len(left), bool)
        _, of = connected_components(coo_matrix((ones, (left, right)), shape=(self.count, self.count)), directed=False)
        reasons: dict[int, str] = {}
        for atoms, reason in self._frozen:
            for each in np.unique(of[atoms]).tolist():
                reasons.setdefault(each, reason)
        return of, reasons


class _Following(TorchDispatchMode):
    """Lets every operator that runs say what it joins."""

    def __init__(self, atoms: Atoms) -> None:
        super().__init__()
        self.atoms = atoms

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        follow(self.atoms, func, args, kwargs or {}, out)
        return out


def groups_of(module: nn.Module, evidence: Evidence, keep: Mapping[str, str]) -> list[Group]:
    """The groups of units of a network, in the order of its tensors; also those that are frozen, with the reason.

    `keep`: paths of modules all of whose axes stay, with the reason.
    """
    atoms = Atoms(module)
    for name, tensor in atoms.tensors.items():
        reason = keep.get(name.rpartition(".")[0])
        if reason is not None:
            for label in atoms.of(tensor):
                atoms.freeze(label, reason)
    _tie_recurrent(module, atoms)
    with evaluating(module), plain_kernels(), torch.no_grad(), _Following(atoms):
        out = evidence.run(module)
    for each in tensors_in(out):
        for label in atoms.of(each):
            atoms.freeze(label, "it is an output of the network")
    return _grouped(module, atoms)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in what a network returned."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for each in value:
            yield from tensors_in(each)
    elif getattr(value, "__dict__", None):
        yield from tensors_in(vars(value))


def _tie_recurrent(module: nn.Module, atoms: Atoms) -> None:
    """All layers and directions of a recurrent module have one hidden size; gates go together."""
    for each in module.modules():
        if not isinstance(each, nn.RNNBase):
            continue
        hidden = [atoms.of(p)[1] for n, p in each.named_parameters(recurse=False) if n.startswith("weight_hh")]
        first = atoms.join(*hidden)
        for parameter in each.parameters(recurse=False):
            label = atoms.of(parameter)[0]
            if isinstance(label, np.ndarray) and each.proj_size == 0 and each.hidden_size > 1:
                for gate in label.reshape(-1, each.hidden_size):
                    atoms.join(first, gate)
            elif each.proj_size:
                atoms.freeze(label, "a recurrent layer with a projection")
                atoms.freeze(first, "a recurrent layer with a projection")


def root_dim(module: nn.Module, name: str) -> int | None:
    """The axis of a module's parameter along which its output channels lie; None where they only follow."""
    if isinstance(module, nn.RNNBase):
        return 1 if name == "weight_hh_l0" else None
    if name != "weight":
        return None
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Embedding):
        return 1
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return 0
    return 0 if isinstance(module, nn.Linear) else None


def _grouped(module: nn.Module, atoms: Atoms) -> list[Group]:
    of, reasons = atoms.components()
    modules = dict(module.named_modules())
    held: dict[int, dict[Axis, np.ndarray]] = {}
    for axis, start in atoms.starts.items():
        size = atoms.tensors[axis.tensor].shape[axis.dim]
        components = of[start : start + size]
        order = np.argsort(components, kind="stable")
        cuts = np.flatnonzero(np.diff(components[order])) + 1
        for indices in np.split(order, cuts):
            held.setdefault(int(components[indices[0]]), {})[axis] = indices
    roots: dict[tuple[Any, ...], list[int]] = {}
    for component, axes in held.items():
        mine = tuple(axis for axis in axes if _is_root(modules, axis))
        if mine:
            roots.setdefault((mine, reasons.get(component, "")), []).append(component)
    return [_group(mine, reason, [held[each] for each in members]) for (mine, reason), members in roots.items()]


def _is_root(modules: Mapping[str, nn.Module], axis: Axis) -> bool:
    path, _, name = axis.tensor.rpartition(".")
    return root_dim(modules[path], name) == axis.dim


def _group(roots: tuple[Axis, ...], reason: str, units: list[dict[Axis, np.ndarray]]) -> Group:
    units = sorted(units, key=lambda unit: int(unit[roots[0]][0]))
    empty = np.zeros(0, int)
    axes = {axis: tuple(unit.get(axis, empty) for unit in units) for unit in units for axis in unit}
    return Group(roots, axes, len(units), reason)
