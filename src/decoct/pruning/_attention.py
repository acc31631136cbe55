"""Attention modules of libraries: which rows and columns make up a head, and what they keep as numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from decoct.models.attention import SlimAttention
from decoct.pruning._atoms import Axis, Group
from decoct.pruning._cut import cut
from decoct.pruning._scores import Scores, keep_count, removed, weakest
from decoct.training.compression import Change


@dataclass(frozen=True)
class Attention:
    """One attention module: its heads as units of a group, and what sets its number of heads."""

    path: str
    group: Group
    resize: Callable[[nn.Module, int], None]


def with_slim_attention(module: nn.Module, protected: Collection[str] = ()) -> nn.Module:
    """Puts a SlimAttention in place of each nn.MultiheadAttention, whose width could not change otherwise."""
    for path, parent in list(module.named_modules()):
        for name, child in list(parent.named_children()):
            full = f"{path}.{name}" if path else name
            if isinstance(child, nn.MultiheadAttention) and full not in protected and SlimAttention.can_be(child):
                setattr(parent, name, SlimAttention.of(child))
    return module


def attentions(module: nn.Module) -> Iterator[Attention]:
    """The attention modules whose heads are known: timm's, transformers' encoders', SlimAttention."""
    modules = dict(module.named_modules())
    for path, each in modules.items():
        children = set(each._modules)
        if isinstance(each, SlimAttention):
            yield _slim(path, each)
        elif _is_timm(each):
            yield _timm(path, each)
        elif {"query", "key", "value"} <= children and "attention_head_size" in vars(each):
            output = f"{path.rpartition('.')[0]}.output.dense"
            parts = [each._modules[name] for name in ("query", "key", "value")]
            if all(isinstance(part, nn.Linear) for part in (*parts, modules.get(output))):
                yield _bert(path, each, output)
        elif {"q_lin", "k_lin", "v_lin", "out_lin"} <= children and "n_heads" in vars(each):
            yield _distilbert(path, each)


def _is_timm(module: nn.Module) -> bool:
    mine = type(module).__name__ == "Attention" and type(module).__module__.startswith("timm.")
    return (
        mine and {"qkv", "proj"} <= set(module._modules) and {"num_heads", "head_dim", "attn_dim"} <= set(vars(module))
    )


def _heads(path: str, linears: Mapping[str, tuple[int, int]], heads: int, width: int, owner: nn.Module) -> Group:
    """`linears`: each tensor's name below the owner, the axis along which heads lie, how often they lie there."""
    tensors = dict(owner.named_parameters())
    axes = {}
    for name, (dim, times) in linears.items():
        if name in tensors:
            at = np.arange(times * heads * width).reshape(times, heads, width)
            assert at.size == tensors[name].shape[dim], f"{path}.{name}"
            axes[Axis(f"{path}.{name}" if path else name, dim)] = tuple(at[:, h].reshape(-1) for h in range(heads))
    return Group(tuple(axes)[:1], axes, heads)


def _slim(path: str, each: SlimAttention) -> Attention:
    names = {"in_proj_weight": (0, 3), "in_proj_bias": (0, 3), "out_proj.weight": (1, 1)}
    return Attention(path, _heads(path, names, each.num_heads, each.head_dim, each), _set("num_heads"))


def _timm(path: str, each: Any) -> Attention:
    names = {"qkv.weight": (0, 3), "qkv.bias": (0, 3), "gate.weight": (0, 1), "gate.bias": (0, 1)}
    names |= {"norm.weight": (0, 1), "norm.bias": (0, 1), "proj.weight": (1, 1)}
    group = _heads(path, names, each.num_heads, each.head_dim, each)
    return Attention(path, group, _set("num_heads", "attn_dim", width=each.head_dim))


def _bert(path: str, each: Any, output: str) -> Attention:
    names = {f"{part}.{kind}": (0, 1) for part in ("query", "key", "value") for kind in ("weight", "bias")}
    heads, width = each.num_attention_heads, each.attention_head_size
    group = _heads(path, names, heads, width, each)
    columns = np.arange(heads * width).reshape(heads, width)
    axes = {**group.axes, Axis(f"{output}.weight", 1): tuple(columns)}
    return Attention(path, Group(group.roots, axes, heads), _set("num_attention_heads", "all_head_size", width=width))


def _distilbert(path: str, each: Any) -> Attention:
    names = {f"{part}.{kind}": (0, 1) for part in ("q_lin", "k_lin", "v_lin") for kind in ("weight", "bias")}
    group = _heads(path, {**names, "out_lin.weight": (1, 1)}, each.n_heads, each.attention_head_size, each)
    return Attention(path, group, _set("n_heads", "dim", width=each.attention_head_size))


def _set(count: str, total: str = "", *, width: int = 0) -> Callable[[nn.Module, int], None]:
    """What sets the number of heads, and their width in all, where a module keeps it."""

    def resize(module: nn.Module, heads: int) -> None:
        setattr(module, count, heads)
        if total:
            setattr(module, total, heads * width)

    return resize


def cut_heads(
    module: nn.Module,
    scores: Scores,
    ratio: float,
    protected: Collection[str],
    first_size: Callable[[str, int], int] = lambda path, now: now,
) -> list[Change]:
    """Removes the weakest heads of each attention module, in place; what became of each.

    `first_size`: of a path and its heads now, how many the ratio is of."""
    found = list(attentions(module))
    gone: list[tuple[Group, np.ndarray]] = []
    changes = []
    for each in found:
        size, note = each.group.size, ""
        kept = min(size, keep_count(first_size(each.path, size), ratio, 1))
        if each.path in protected or any(axis.tensor.rpartition(".")[0] in protected for axis in each.group.axes):
            kept, note = size, "protected"
        elif kept == size:
            note = f"of {size} heads none can go at ratio {ratio:g}"
        values = scores.of(each.group)
        assert values is not None
        gone.append((each.group, weakest(values, size - kept)))
        changes.append(Change(each.path, "heads", size, kept, note))
    cut(module, removed(gone))
    modules = dict(module.named_modules())
    for each, change in zip(found, changes):
        if change.after != change.before:
            each.resize(modules[each.path], change.after)
    _tell_config(module, changes)
    return [*changes, *_left_alone(module, protected)]


def _left_alone(module: nn.Module, protected: Collection[str]) -> Iterator[Change]:
    """What no SlimAttention took the place of."""
    for path, each in module.named_modules():
        if isinstance(each, nn.MultiheadAttention):
            note = "protected" if path in protected else "its keys are of another width, or it adds some"
            yield Change(path, "heads", each.num_heads, each.num_heads, note)


def _tell_config(module: nn.Module, changes: Sequence[Change]) -> None:
    """A transformer's config says how many heads its layers have, where all have the same."""
    counts = {each.after for each in changes}
    if len(counts) != 1:
        return
    count = counts.pop()
    for each in module.modules():
        config: Any = vars(each).get("config")
        for name in ("num_attention_heads", "n_heads"):
            if config is not None and name in vars(config):
                setattr(config, name, count)
