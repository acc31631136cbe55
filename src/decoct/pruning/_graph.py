"""The dependency graph: which rows, columns and entries of a network's tensors go together.

Each index of each axis of each parameter and buffer is an atom. The network runs once on a few samples; every operator
says which axes of what it takes and gives stand for each other, and joins their atoms. What is connected in the end can
only go as one. Where the size of an axis must stay (outputs, inputs, views that cut it up), its atoms are frozen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from decoct.errors import RecipeError
from decoct.models.modes import as_in_training, evaluating, plain_kernels, training_branches
from decoct.pruning._atoms import Atoms, Axis, Group, Units, ranges
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
        self.fused = False
        """Whether a kernel ran that does the work of several operators."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.fused |= func._schema.name.startswith("aten::mkldnn")
        self.used.update(map(id, tensors_in([*args, *(kwargs or {}).values()])))
        follow(self.atoms, func, args, kwargs or {}, out)
        return out


class Shapes(NamedTuple):
    """The shapes of a network's outputs in eval mode, and with the branches that only training has; None where it
    does not run so on these samples."""

    evaluating: list[torch.Size]
    training: list[torch.Size] | None


def groups_of(module: nn.Module, evidence: Evidence, keep: Mapping[str, str]) -> list[Group]:
    """The groups of units of a network, in the order of its tensors; also those that are frozen, with the reason.

    `keep`: paths of modules all of whose axes stay, with the reason. The network runs in eval mode and, where it does
    on these samples, on the branches that only training has. RecipeError names modules that neither reached: nobody
    knows what feeds them.
    """
    return groups_and_shapes(module, evidence, keep)[0]


def groups_and_shapes(module: nn.Module, evidence: Evidence, keep: Mapping[str, str]) -> tuple[list[Group], Shapes]:
    """The groups as `groups_of` gives them, and the shapes of the outputs that were seen on the way."""
    following, outputs = _followed(module, evidence, keep)
    if following.fused:
        with plain_kernels():
            following, outputs = _followed(module, evidence, keep)
    atoms = following.atoms
    for each in tensors_in(outputs):
        for label in atoms.of(each):
            atoms.freeze(label, "it is an output of the network")
    _refuse_unreached(module, following.used, keep)
    first, *more = ([each.shape for each in tensors_in(found)] for found in outputs)
    return _grouped(module, atoms), Shapes(first, more[0] if more else None)


def _followed(module: nn.Module, evidence: Evidence, keep: Mapping[str, str]) -> tuple[_Following, list[Any]]:
    """The atoms of a network after its passes, and what these gave."""
    atoms = Atoms(module)
    for name, tensor in atoms.tensors.items():
        reason = keep.get(name.rpartition(".")[0])
        if reason is not None:
            for label in atoms.of(tensor):
                atoms.freeze(label, reason)
    _tie_recurrent(module, atoms)
    with as_in_training(), torch.no_grad(), _Following(atoms) as following:
        with evaluating(module):
            outputs = [evidence.run(module)]
        with contextlib.suppress(*FAILURES), training_branches(module):
            outputs.append(evidence.run(module))
    return following, outputs


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


@dataclass(frozen=True)
class _Held:
    """What one axis holds: the components along it, ascending, and the indices of each, one after the other."""

    components: np.ndarray
    indices: np.ndarray
    starts: np.ndarray
    counts: np.ndarray


def _held(components: np.ndarray) -> _Held:
    order = np.argsort(components, kind="stable")
    found, starts, counts = np.unique(components[order], return_index=True, return_counts=True)
    return _Held(found, order, starts, counts)


def _grouped(module: nn.Module, atoms: Atoms) -> list[Group]:
    """Components that the same leading axes hold, and that are frozen alike, as the units of one group; groups in the
    order in which their first component is met, units in that of their indices along the first leading axis."""
    of, reasons = atoms.components()
    modules = dict(module.named_modules())
    shapes = {axis: atoms.tensors[axis.tensor].shape[axis.dim] for axis in atoms.starts}
    held = {axis: _held(of[start : start + shapes[axis]]) for axis, start in atoms.starts.items()}
    leading = [axis for axis in held if _is_root(modules, axis)]
    roots, alike = _alike(len(reasons), reasons, {axis: held[axis] for axis in leading})
    met = _first_met(len(reasons), held.values())
    groups = sorted(np.unique(alike[alike >= 0]).tolist(), key=lambda each: int(met[alike == each].min()))
    ranks = np.full(len(reasons), -1)
    for each in groups:
        first = held[roots[each][0]]
        mine = np.flatnonzero(alike[first.components] == each)
        order = np.argsort(first.indices[first.starts[mine]])
        ranks[first.components[mine[order]]] = np.arange(len(mine))
    axes = _axes(held, alike, ranks)
    return [_group(roots[each], reasons[alike == each][0], axes[each], int((alike == each).sum())) for each in groups]


def _alike(
    count: int, reasons: np.ndarray, leading: Mapping[Axis, _Held]
) -> tuple[dict[int, tuple[Axis, ...]], np.ndarray]:
    """For each component a number that those with the same leading axes and reason share, -1 for one without such axes;
    and the axes by number."""
    numbers: dict[tuple[int, Any], int] = {}
    roots: dict[int, tuple[Axis, ...]] = {-1: ()}
    found = np.full(count, -1)

    def renumber(at: np.ndarray, by: Any, more: tuple[Axis, ...]) -> None:
        old, where = np.unique(found[at], return_inverse=True)
        new = []
        for each in old.tolist():
            number = numbers.setdefault((each, by), len(numbers))
            roots[number] = (*roots[each], *more)
            new.append(number)
        found[at] = np.array(new)[where]

    for axis, own in leading.items():
        renumber(own.components, axis, (axis,))
    for reason in dict.fromkeys(reasons.tolist()):
        at = np.flatnonzero((reasons == reason) & (found >= 0))
        if reason and len(at):
            renumber(at, reason, ())
    return roots, found


def _first_met(count: int, held: Iterable[_Held]) -> np.ndarray:
    """The place of each component in the order in which the axes show them."""
    met = np.full(count, count)
    seen = 0
    for own in held:
        new = own.components[met[own.components] == count]
        met[new] = seen + np.arange(len(new))
        seen += len(new)
    return met


def _axes(held: Mapping[Axis, _Held], alike: np.ndarray, ranks: np.ndarray) -> dict[int, list[_Part]]:
    """By number of the group the axes that its units are on."""
    found: dict[int, list[_Part]] = {}
    for axis, own in held.items():
        at = np.flatnonzero(alike[own.components] >= 0)
        order = at[np.lexsort((ranks[own.components[at]], alike[own.components[at]]))]
        groups = alike[own.components[order]]
        for mine in np.split(order, np.flatnonzero(np.diff(groups)) + 1) if len(order) else ():
            flat = own.indices[ranges(own.starts[mine], own.counts[mine])]
            part = _Part(axis, flat, own.counts[mine], ranks[own.components[mine]])
            found.setdefault(int(alike[own.components[mine[0]]]), []).append(part)
    return found


class _Part(NamedTuple):
    """The units of a group that are on one axis: their indices one after the other, how many each has, their ranks."""

    axis: Axis
    flat: np.ndarray
    counts: np.ndarray
    units: np.ndarray


def _is_root(modules: Mapping[str, nn.Module], axis: Axis) -> bool:
    path, _, name = axis.tensor.rpartition(".")
    return root_dim(modules[path], name) == axis.dim


def _group(roots: tuple[Axis, ...], reason: str, parts: list[_Part], size: int) -> Group:
    """A group whose axes stand in the order in which its units show them."""
    axes = {}
    for part in sorted(parts, key=lambda each: int(each.units[0])):
        counts = np.zeros(size, int)
        counts[part.units] = part.counts
        axes[part.axis] = Units(part.flat, counts)
    return Group(roots, axes, size, reason)
