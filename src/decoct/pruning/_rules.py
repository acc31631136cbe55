"""What each operator joins: the rules of the dependency graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decoct.pruning._atoms import ANY, Atoms, Label, Labels

Rule = Callable[[Atoms, Sequence[Any], Mapping[str, Any], Any], None]
CUT = "a view, slice or index of fixed size cuts it up"


def follow(atoms: Atoms, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    """Labels what an operator gave, and joins what it took."""
    name = func._schema.name.removeprefix("aten::").rstrip("_")
    taken = _flat([*args, *kwargs.values()])
    if name in RULES:
        RULES[name](atoms, args, kwargs, out)
    elif "pool" in name or "upsample" in name or name.endswith("pad_nd") or "_pad" in name:
        _spatial(atoms, args[0], out)
    elif "batch_norm" in name:
        _normalized(atoms, taken, out, 1)
    elif "scaled_dot_product" in name:
        _attention(atoms, args, out)
    elif not taken:
        for each in _flat([out]):
            atoms.put(each, [ANY] * each.dim())
    elif isinstance(out, Tensor) and _broadcast(taken) == out.shape:
        _elementwise(atoms, taken, out)
    else:
        for each in taken:
            for label in atoms.of(each):
                atoms.freeze(label, f"operator {name} is not followed")


def _flat(values: Sequence[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for each in values:
        if isinstance(each, Tensor):
            found.append(each)
        elif isinstance(each, list | tuple):
            found += _flat(each)
    return found


def _broadcast(tensors: Sequence[Tensor]) -> torch.Size | None:
    try:
        return torch.broadcast_shapes(*(each.shape for each in tensors))
    except RuntimeError:
        return None


def _elementwise(atoms: Atoms, taken: Sequence[Tensor], out: Tensor) -> None:
    labels: Labels = []
    for dim in range(-out.dim(), 0):
        along = [(atoms.of(each)[dim], each.shape[dim]) for each in taken if each.dim() >= -dim]
        here = [label for label, size in along if size == out.shape[dim]]
        labels.append(atoms.join(*here) if here else ANY)
    atoms.put(out, labels)


def _spatial(atoms: Atoms, x: Tensor, out: Any) -> None:
    """Pooling, resampling, padding: channels stay, places change."""
    for each in _flat([out]):
        labels: Labels = []
        for dim, label in enumerate(atoms.of(x)):
            if each.shape[dim] != x.shape[dim]:
                atoms.freeze(label, CUT)
            labels.append(label if each.shape[dim] == x.shape[dim] else None)
        atoms.put(each, labels)


def _normalized(atoms: Atoms, taken: Sequence[Tensor], out: Any, dim: int) -> None:
    x, first = taken[0], _flat([out])[0]
    labels = list(atoms.of(x))
    vectors = [each for each in taken[1:] if each.dim() == 1 and len(each) == x.shape[dim]]
    labels[dim] = atoms.join(labels[dim], *(atoms.of(each)[0] for each in vectors))
    atoms.put(first, labels)


def _layer_norm(atoms: Atoms, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    x, count = args[0], len(args[1])
    labels = list(atoms.of(x))
    for weight in _flat(args[2:]):
        for dim in range(-count, 0):
            labels[dim] = atoms.join(labels[dim], atoms.of(weight)[dim])
    if count > 1 or not _flat(args[2:]):
        for dim in range(-count, 0):
            atoms.freeze(labels[dim], "its size is an argument of the normalization")
    atoms.put(_flat([out])[0], labels)


def _group_norm(atoms: Atoms, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    x, groups = args[0], args[6]
    _normalized(atoms, [x, *_flat(args[1:3])], out, 1)
    _equal_parts(atoms, atoms.of(x)[1], groups)


def _equal_parts(atoms: Atoms, label: Label, parts: int) -> None:
    """Each part must lose as many as every other: the same places."""
    if isinstance(label, np.ndarray) and parts > 1:
        atoms.join(*label.reshape(parts, -1))


def _convolution(atoms: Atoms, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> None:
    x, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
    given = atoms.of(x)[1]
    ins, outs = (0, 1) if transposed else (1, 0)
    labels = atoms.of(weight)
    produced: Label
    if groups == 1:
        atoms.join(given, labels[ins], reason="it meets the network's inputs")
        produced = labels[outs]
    elif groups == x.shape[1] == out.shape[1]:
        produced = atoms.join(given, labels[0])
    else:
        produced = _grouped_convolution(atoms, given, labels, (ins, outs), groups)
    biases = [atoms.of(bias)[0]] if bias is not None else []
    atoms.put(out, [None, atoms.join(produced, *biases), *[None] * (out.dim() - 2)])


def _grouped_convolution(atoms: Atoms, given: Label, labels: Labels, axes: tuple[int, int], groups: int) -> Label:
    """A convolution in groups: axis 0 of the weight holds all groups, axis 1 one of them."""
    ins, outs = axes
    if ins == 0 or not isinstance(given, np.ndarray) or not isinstance(labels[0], np.ndarray):
        for label in (given, *labels[:2]):
            atoms.freeze(label, "a convolution in groups that is not followed")
        return labels[outs] if outs == 0 else None
    _equal_parts(atoms, given, groups)
    if len(given) > groups:
        atoms.join(given.reshape(groups, -1)[0], labels[1])
    else:
        atoms.freeze(given, "a convolution in groups that is not followed")
    _equal_parts(atoms, labels[0], groups)
    return labels[0]


def _mm(atoms: Atoms, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> None:
    a, b = atoms.of(args[0]), atoms.of(args[1])
    if args[0].shape[-1] > 1:
        atoms.join(a[-1], b[-2], reason="it meets the network's inputs")
    batch = [atoms.join(*each) for each in zip(a[:-2], b[:-2])]
    atoms.put(out, [*batch, a[-2], b[-1]])


def _addmm(atoms: Atoms, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> None:
    _mm(atoms, args[1:], {}, out)
    labels = list(atoms.of(out))
    bias = atoms.of(args[0])
    for dim in range(-len(bias), 0):
        if args[0].shape[dim] > 1:
            labels[dim] = atoms.join(labels[dim], bias[dim])
    atoms.put(out, labels)


def _linear(atoms: Atoms, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> None:
    x, weight = atoms.of(args[0]), atoms.of(args[1])
    if args[0].shape[-1] > 1:
        atoms.join(x[-1], weight[1], reason="it meets the network's inputs")
    biases = [atoms.of(each)[0] for each in _flat(args[2:])]
    atoms.put(out, [*x[:-1], atoms.join(weight[0], *biases)])


def _attention(atoms: Atoms, args: Sequence[Any], out: Any) -> None:
    q, k, v = (atoms.of(each) for each in args[:3])
    atoms.join(q[-1], k[-1])
    labels = [atoms.join(*each) for each in zip(q[:-2], k[:-2], v[:-2])]
    atoms.put(_flat([out])[0], [*labels, q[-2], v[-1]])


def _embedding(atoms: Atoms, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> None:
    rows, columns = atoms.of(args[0])
    atoms.freeze(rows, "indices point into it")
    atoms.put(out, [*[None] * (out.dim() - 1), columns])


def _view(atoms: Atoms, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> None:
    x = args[0]
    old = [(size, label) for size, label in zip(x.shape, atoms.of(x)) if size != 1]
    new = [dim for dim, size in enumerate(out.shape) if size != 1]
    labels: Labels = [None] * out.dim()
    while old and new:
        left, right = [old.pop(0)], [new.pop(0)]
        while (a := _product([size for size, _ in left])) != (b := _product([out.shape[dim] for dim in right])):
            if a < b:
                left.append(old.pop(0))
            else:
                right.append(new.pop(0))
        if len(right) == 1:
            labels[right[0]] = _merged(atoms, left)
        else:
            for _, label in left:
                atoms.freeze(label, CUT)
            if all(label is ANY for _, label in left):
                for dim in right:
                    labels[dim] = ANY
    atoms.put(out, labels)


def _merged(atoms: Atoms, parts: Sequence[tuple[int, Label]]) -> Label:
    """The label of several axes laid out as one."""
    if len(parts) == 1:
        return parts[0][1]
    labelled = [i for i, (_, label) in enumerate(parts) if isinstance(label, np.ndarray)]
    if len(labelled) != 1:
        for _, label in parts:
            atoms.freeze(label, CUT)
        return ANY if all(label is ANY for _, label in parts) else None
    at, label = labelled[0], parts[labelled[0]][1]
    assert isinstance(label, np.ndarray)
    shape = [1] * len(parts)
    shape[at] = len(label)
    return np.broadcast_to(label.reshape(shape), [size for size, _ in parts]).reshape(-1)


def _product(sizes: Sequence[int]) -> int:
    return int(np.prod(sizes))


def _permute(atoms: Atoms, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> None:
    labels = atoms.of(args[0])
    atoms.put(out, [labels[dim] for dim in args[1]])


def _transpose(atoms: Atoms, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> None:
    labels = list(atoms.of(args[0]))
    a, b = (args[1], args[2]) if len(args) > 2 else (0, -1)
    labels[a], labels[b] = labels[b], labels[a]
    atoms.put(out, labels)


def _unsqueeze(atoms: Atoms, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> None:
    labels = list(atoms.of(args[0]))
    labels.insert(args[1] % out.dim(), None)
    atoms.put(out, labels)


def _expand(atoms: Atoms, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> None:
    x = args[0]
    labels: Labels = [ANY] * out.dim()
    for dim in range(-x.dim(), 0):
        if x.shape[dim] == out.shape[dim]:
            labels[dim] = atoms.of(x)[dim]
    atoms.put(out, labels)


def _cat(atoms: Atoms, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> None:
    parts = [each for each in args[0] if each.numel() or each.dim() == out.dim()]
    at = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
    labels: Labels = [atoms.join(*(atoms.of(each)[dim] for each in parts)) for dim in range(out.dim()) if dim != at]
    along = [(atoms.of(each)[at], each.shape[at]) for each in parts]
    if all(isinstance(label, np.ndarray) for label, _ in along):
        joined: Label = np.concatenate([label for label, _ in along])
    else:
        joined = ANY if all(label is ANY for label, _ in along) else None
        for label, _ in along:
            atoms.freeze(label, "it is joined to something of a fixed size")
    labels.insert(at, joined)
    atoms.put(out, labels)


def _stack(atoms: Atoms, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> None:
    at = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
    labels = [atoms.join(*each) for each in zip(*(atoms.of(part) for part in args[0]))]
    labels.insert(at, None)
    atoms.put(out, labels)


def _split(atoms: Atoms, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    x = args[0]
    at = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % x.dim()
    label = atoms.of(x)[at]
    sizes = [each.shape[at] for each in out]
    if len(set(sizes)) == 1:
        _equal_parts(atoms, label, len(sizes))
    else:
        atoms.freeze(label, CUT)
    start = 0
    for each, size in zip(out, sizes):
        labels = list(atoms.of(x))
        labels[at] = label[start : start + size] if isinstance(label, np.ndarray) else label
        atoms.put(each, labels)
        start += size


def _slice(atoms: Atoms, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> None:
    x = args[0]
    dim, start, end, step = ([*args[1:], *[None] * 4])[:4]
    dim, labels = (dim or 0) % x.dim(), list(atoms.of(x))
    if x.shape[dim] != out.shape[dim]:
        label = labels[dim]
        atoms.freeze(label, CUT)
        labels[dim] = label[start:end:step] if isinstance(label, np.ndarray) else label
    atoms.put(out, labels)


def _select(atoms: Atoms, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    """One of an axis (select), or each of them (unbind)."""
    x = args[0]
    at = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % x.dim()
    atoms.freeze(atoms.of(x)[at], CUT)
    for each in _flat([out]):
        atoms.put(each, [label for dim, label in enumerate(atoms.of(x)) if dim != at])


def _gather(atoms: Atoms, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> None:
    x, at = args[0], args[1] % args[0].dim()
    atoms.freeze(atoms.of(x)[at], CUT)
    labels: Labels = []
    for dim, label in enumerate(atoms.of(x)):
        labels.append(None if dim == at else label if x.shape[dim] == out.shape[dim] else None)
    atoms.put(out, labels)


def _flip(atoms: Atoms, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> None:
    labels = list(atoms.of(args[0]))
    for dim in args[1]:
        label = labels[dim]
        labels[dim] = label[::-1] if isinstance(label, np.ndarray) else label
    atoms.put(out, labels)


def _reduced(atoms: Atoms, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    """A sum, mean, maximum or norm over axes, whose sizes are free."""
    x = args[0]
    named = next((each for each in args[1:] if isinstance(each, list | tuple | int) and each is not True), None)
    named = kwargs.get("dim", named)
    dims = range(x.dim()) if named in (None, []) else [named] if isinstance(named, int) else named
    gone = {dim % x.dim() for dim in dims} if x.dim() else set()
    labels = atoms.of(x)
    for each in _flat([out]):
        if each.dim() == x.dim():
            atoms.put(each, [None if dim in gone else label for dim, label in enumerate(labels)])
        else:
            atoms.put(each, [label for dim, label in enumerate(labels) if dim not in gone])


def _norm(atoms: Atoms, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> None:
    _reduced(atoms, [args[0], *args[2:]], kwargs, out)


def _dropout(atoms: Atoms, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    for each in _flat([out]):
        atoms.put(each, list(atoms.of(args[0])))


RULES: Mapping[str, Rule] = {
    "convolution": _convolution,
    "_convolution": _convolution,
    "mm": _mm,
    "bmm": _mm,
    "addmm": _addmm,
    "baddbmm": _addmm,
    "linear": _linear,
    "native_dropout": _dropout,
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "embedding": _embedding,
    "permute": _permute,
    "transpose": _transpose,
    "t": _transpose,
    "unsqueeze": _unsqueeze,
    "expand": _expand,
    "cat": _cat,
    "stack": _stack,
    "slice": _slice,
    "select": _select,
    "unbind": _select,
    "gather": _gather,
    "flip": _flip,
    "linalg_vector_norm": _norm,
    **dict.fromkeys(("view", "_unsafe_view", "_reshape_alias", "reshape", "squeeze", "flatten", "unflatten"), _view),
    **dict.fromkeys(("split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes", "chunk"), _split),
    **dict.fromkeys(
        ("mean", "sum", "amax", "amin", "max", "min", "argmax", "any", "all", "var", "std", "logsumexp", "prod"),
        _reduced,
    ),
}
