"""The dependency graph: which rows, columns and entries of a network's tensors go together.

Each index of each axis of each parameter and buffer is an atom. The network runs once on a few samples; every operator
says which axes of what it takes and gives stand for each other, and joins their atoms. What is connected in the end can
only go as one. Where the size of an axis must stay (outputs, inputs, views that cut it up), its atoms are frozen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from decoct.errors import RecipeError
from decoct.models.modes import evaluating, plain_kernels, training_branches
from decoct.pruning._atoms import Atoms, Axis, Group
from decoct.pruning._rules import follow
from decoct.training.compression import Evidence

FAILURES = (RuntimeError, ValueError, IndexError, TypeError, AssertionError, AttributeError)
"""What a forward pass raises that cannot take what it is given."""
SHOWN = 5
"""How many modules an error names."""


class _Following(TorchDispatchMode):
    """Lets every operator that runs say what it joins."""

    def __init__(self, atoms: Atoms) -> None:
        super().__init__()
        self.atoms = atoms
        self.used: set[int] = set()
        """The tensors, by identity, that an operator took."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.used.update(map(id, tensors_in([*args, *(kwargs or {}).values()])))
        follow(self.atoms, func, args, kwargs or {}, out)
        return out


def groups_of(module: nn.Module, evidence: Evidence, keep: Mapping[str, str]) -> list[Group]:
    """The groups of units of a network, in the order of its tensors; also those that are frozen, with the reason.

    `keep`: paths of modules all of whose axes stay, with the reason. The network runs in eval mode and, where it does
    on these samples, on the branches that only training has. RecipeError names modules that neither reached: nobody
    knows what feeds them.
    """
    atoms = Atoms(module)
    for name, tensor in atoms.tensors.items():
        reason = keep.get(name.rpartition(".")[0])
        if reason is not None:
            for label in atoms.of(tensor):
                atoms.freeze(label, reason)
    _tie_recurrent(module, atoms)
    with plain_kernels(), torch.no_grad(), _Following(atoms) as following:
        with evaluating(module):
            outputs = [evidence.run(module)]
        with contextlib.suppress(*FAILURES), training_branches(module):
            outputs.append(evidence.run(module))
    for each in tensors_in(outputs):
        for label in atoms.of(each):
            atoms.freeze(label, "it is an output of the network")
    _refuse_unreached(module, following.used, keep)
    return _grouped(module, atoms)


def _refuse_unreached(module: nn.Module, used: Collection[int], keep: Mapping[str, str]) -> None:
    found = [
        path or type(module).__name__
        for path, each in module.named_modules()
        if path not in keep and each._parameters and not any(id(p) in used for p in each._parameters.values())
    ]
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise RecipeError(
            f"channels: the example reached {', '.join(found[:SHOWN])}{more} neither in eval mode nor in training, so "
            "which layers feed them is not known, and they would not fit what is cut elsewhere; give an `example` on "
            "which they run (an expert is chosen, a branch taken), or name them and the layers that feed them in "
            "`protect`"
        )


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
    leading = {axis for axis in atoms.starts if _is_root(modules, axis)}
    roots: dict[tuple[Any, ...], list[int]] = {}
    for component, axes in held.items():
        mine = tuple(axis for axis in axes if axis in leading)
        if mine:
            roots.setdefault((mine, reasons.get(component, "")), []).append(component)
    return [_group(mine, reason, [held[each] for each in members]) for (mine, reason), members in roots.items()]


def _is_root(modules: Mapping[str, nn.Module], axis: Axis) -> bool:
    path, _, name = axis.tensor.rpartition(".")
    return root_dim(modules[path], name) == axis.dim


def _group(roots: tuple[Axis, ...], reason: str, units: list[dict[Axis, np.ndarray]]) -> Group:
    units = sorted(units, key=lambda unit: int(unit[roots[0]][0]))
    empty = np.zeros(0, int)
    known = dict.fromkeys(axis for unit in units for axis in unit)  # once each: units are many
    axes = {axis: tuple(unit.get(axis, empty) for unit in units) for axis in known}
    return Group(roots, axes, len(units), reason)
