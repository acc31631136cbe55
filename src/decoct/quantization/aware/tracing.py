"""A network as one graph of layers: traced by torch.fx, batch norm folded into the layers before it."""

from __future__ import annotations

import copy
import operator
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from decoct.quantization.aware.modules import QuantizedNet, Tap

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
UNTRACEABLE = (
    fx.proxy.TraceError, TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError, KeyError, IndexError
)  # fmt: skip
"""What torch.fx, and code that meets its proxies, raises."""


@dataclass
class Traced:
    """A graph, the network whose modules it calls (eval mode, a copy), and where each module that was traced through
    ends: paths with the node of what it gave, inner ones first."""

    root: nn.Module
    graph: fx.Graph
    ends: list[tuple[str, fx.Node]] = field(default_factory=list)

    def module_at(self, node: Any) -> nn.Module | None:
        """The layer that a node calls."""
        if isinstance(node, fx.Node) and node.op == "call_module":
            return self.root.get_submodule(str(node.target))
        return None


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        super().__init__()
        self.ends: list[tuple[str, fx.Node]] = []

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = super().call_module(m, forward, args, kwargs)
        path = self.path_of_module(m)
        if isinstance(out, fx.Proxy) and path and not self.is_leaf_module(m, path):
            self.ends.append((path, out.node))
        return out


def trace(module: nn.Module) -> Traced:
    """The graph of a copy in eval mode; one of UNTRACEABLE where it depends on values."""
    copied = copy.deepcopy(module).eval()
    tracer = _Tracer()
    graph = tracer.trace(copied)
    graph.eliminate_dead_code(_must_stay)
    return Traced(copied, graph, [(path, node) for path, node in tracer.ends if node in graph.nodes])


def _must_stay(node: fx.Node) -> bool:
    """Whether a node matters though nothing uses what it gives: it changes a tensor in place."""
    in_place = node.op == "call_method" and str(node.target).endswith("_")
    return in_place or node.op in ("placeholder", "output") or node.target is operator.setitem


def traceable(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Why a network cannot be traced, or its graph gives something else on real samples; empty where it can be."""
    modes = {each: each.training for each in module.modules()}
    try:
        found = trace(module)
        module.eval()
        with torch.no_grad():
            said = tensors(fx.GraphModule(found.root, found.graph)(*args, **kwargs))
            wanted = tensors(module(*args, **kwargs))
    except UNTRACEABLE as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    finally:
        for each, mode in modes.items():
            each.training = mode
    alike = len(said) == len(wanted) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True) for a, b in zip(said, wanted)
    )
    return "" if alike else "its traced graph gives other numbers"


def tensors(value: Any) -> list[Tensor]:
    """The tensors of what a network returned."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [each for part in value.values() for each in tensors(part)]
    if isinstance(value, tuple | list):
        return [each for part in value for each in tensors(part)]
    return []


def fold_batch_norm(traced: Traced) -> None:
    """Folds, in place, each batch norm into the convolution or linear layer before it (both called once)."""
    calls = Counter(id(traced.module_at(node)) for node in traced.graph.nodes if node.op == "call_module")
    for node in list(traced.graph.nodes):
        norm = traced.module_at(node)
        if not isinstance(norm, NORMS) or norm.running_mean is None or len(node.all_input_nodes) != 1:
            continue
        before = node.all_input_nodes[0]
        layer = traced.module_at(before)
        if layer is None:
            continue
        if len(before.users) > 1 or calls[id(norm)] > 1 or calls[id(layer)] > 1:
            continue
        if isinstance(layer, CONVOLUTIONS):
            folded: nn.Module = fuse_conv_bn_eval(layer, norm)
        elif isinstance(layer, nn.Linear):
            folded = fuse_linear_bn_eval(layer, norm)
        else:
            continue
        put(traced.root, str(before.target), folded)
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
        traced.ends = [(path, before if end is node else end) for path, end in traced.ends]
        traced.ends.insert(0, (str(node.target), before))


def put(root: nn.Module, path: str, module: nn.Module) -> None:
    """Sets the module at a path."""
    parent, _, name = path.rpartition(".")
    root.get_submodule(parent)._modules[name] = module


def assemble(traced: Traced) -> QuantizedNet:
    """A network of the modules, parameters and buffers that the graph uses, under the paths they had."""
    traced.graph.lint()
    kept = Tap()
    for node in traced.graph.nodes:
        if node.op in ("call_module", "get_attr"):
            _place(kept, traced.root, str(node.target))
    code = type(fx.GraphModule(kept, traced.graph)).forward
    net = QuantizedNet(code)
    net._modules.update(kept._modules)
    net._parameters.update(kept._parameters)
    for name, buffer in kept._buffers.items():
        net.register_buffer(name, buffer, persistent=name not in kept._non_persistent_buffers_set)
    return net


def _place(kept: nn.Module, root: nn.Module, target: str) -> None:
    *path, name = target.split(".")
    at, source = kept, root
    for part in path:
        source = source._modules[part]  # type: ignore[assignment]
        if at._modules.setdefault(part, Tap()) is source:
            return
        at = at.get_submodule(part)
    if name in source._modules:
        at._modules[name] = source._modules[name]
    elif name in source._parameters:
        at.register_parameter(name, source._parameters[name])
    elif name in source._buffers:
        persistent = name not in source._non_persistent_buffers_set
        at.register_buffer(name, source._buffers[name], persistent=persistent)
    else:
        setattr(at, name, getattr(source, name))
