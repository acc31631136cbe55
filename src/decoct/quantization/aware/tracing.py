"""A network as one graph of layers: traced by torch.fx, batch norm folded into the layers before it."""

from __future__ import annotations

import copy
import operator
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from decoct.models.modes import evaluating
from decoct.models.own_inputs import copy_of
from decoct.outputs import leaves
from decoct.quantization.aware.modules import QuantizedNet, Tap

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
UNTRACEABLE = (
    fx.proxy.TraceError, TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError, KeyError, IndexError
)  # fmt: skip
"""What torch.fx, and code that meets its proxies, raises."""


DROPOUTS: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    torch.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}
"""Functions whose `training` is a constant in a graph, and modules that follow the mode."""
HELD = "functional_dropouts"
"""Where the modules for functions are."""


@dataclass
class Traced:
    """A graph, the network whose modules it calls (eval mode, a copy), and where each module that was traced through
    ends: paths with the node of what it gave, inner ones first.

    `random`: paths of modules that change what they take while the network trains, and give it unchanged in eval mode.
    `fixed`: paths of modules whose code asks for the mode; the graph does what it does in eval mode.
    """

    root: nn.Module
    graph: fx.Graph
    ends: list[tuple[str, fx.Node]] = field(default_factory=list)
    random: frozenset[str] = frozenset()
    fixed: tuple[str, ...] = ()

    def module_at(self, node: Any) -> nn.Module | None:
        """The layer that a node calls."""
        if isinstance(node, fx.Node) and node.op == "call_module":
            return self.root.get_submodule(str(node.target))
        return None


class _Tracer(fx.Tracer):
    def __init__(self, *, whole_norms: bool) -> None:
        super().__init__()
        self.whole_norms = whole_norms
        self.ends: list[tuple[str, fx.Node]] = []
        self.random: set[str] = set()
        self.asking: dict[str, None] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (self.whole_norms and is_norm_with_activation(m)) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = super().call_module(m, forward, args, kwargs)
        path = self.path_of_module(m)
        if not isinstance(out, fx.Proxy) or not path or self.is_leaf_module(m, path):
            return out
        if asks_for_mode(m):
            if _gives_what_it_took(m, out, args):
                self.random.add(path)
                return self.create_proxy("call_module", path, args, kwargs)
            self.asking[path] = None
        self.ends.append((path, out.node))
        return out


def is_norm_with_activation(module: nn.Module) -> bool:
    """Whether a module is timm's batch norm with an activation inside (the children `drop` and `act`)."""
    kind = type(module)
    return kind.__name__ == "BatchNormAct2d" and kind.__module__.startswith("timm.") and isinstance(module, NORMS)


def asks_for_mode(module: nn.Module) -> bool:
    """Whether the code of a module reads `training`."""
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and "training" in code.co_names


def _gives_what_it_took(module: nn.Module, out: fx.Proxy, args: tuple[Any, ...]) -> bool:
    """Whether a module without tensors or children (timm's DropPath, torchvision's StochasticDepth) does nothing in
    eval mode."""
    if module._modules or module._parameters or module._buffers or not args:
        return False
    return out is args[0] or getattr(out.node.target, "__name__", "") == "stochastic_depth"


def trace(module: nn.Module, *, whole_norms: bool = True) -> Traced:
    """The graph of a copy in eval mode; one of UNTRACEABLE where it depends on values.

    Dropout and stochastic depth become modules, which follow the mode of the network. `whole_norms`: timm's batch norm
    with an activation is one node.
    """
    copied = copy.deepcopy(module).eval()
    tracer = _Tracer(whole_norms=whole_norms)
    graph = tracer.trace(copied)
    graph.eliminate_dead_code(_must_stay)
    if asks_for_mode(copied):
        tracer.asking[""] = None
    followed = _follow_mode(copied, graph)
    ends = [(path, followed.get(node, node)) for path, node in tracer.ends]
    fixed = tuple(path for path in tracer.asking if path not in {_owner(node) for node in followed.values()})
    return Traced(copied, graph, [each for each in ends if each[1] in graph.nodes], frozenset(tracer.random), fixed)


def _follow_mode(root: nn.Module, graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Puts modules, in place, where functions drop values in training mode; the new node of each old one."""
    holder, found = nn.Module(), {}
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in DROPOUTS:
            continue
        arguments = {**dict(zip(("input", "p", "training"), node.args)), **node.kwargs}
        if arguments.get("training", arguments.get("train", True)):
            continue
        holder.add_module(node.name, DROPOUTS[node.target](float(arguments.get("p", 0.5))).eval())
        root.add_module(HELD, holder)
        with graph.inserting_after(node):
            made = graph.create_node("call_module", f"{HELD}.{node.name}", (arguments["input"],))
        made.meta = dict(node.meta)
        node.replace_all_uses_with(made)
        graph.erase_node(node)
        found[node] = made
    return found


def _owner(node: fx.Node) -> str:
    """The path of the module whose code made a node."""
    return next(reversed(node.meta.get("nn_module_stack", {"": None})), "")


def _must_stay(node: fx.Node) -> bool:
    """Whether a node matters though nothing uses what it gives: it changes a tensor in place."""
    in_place = node.op == "call_method" and str(node.target).endswith("_")
    return in_place or node.op in ("placeholder", "output") or node.target is operator.setitem


def traceable(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Why a network cannot be traced, or its graph gives something else on real samples; empty where it can be."""
    try:
        found = trace(module)
        with evaluating(module), torch.no_grad():
            outputs = tensors(fx.GraphModule(found.root, found.graph)(*copy_of(args), **copy_of(kwargs)))
            wanted = tensors(module(*copy_of(args), **copy_of(kwargs)))
    except UNTRACEABLE as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    alike = len(outputs) == len(wanted) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
        for a, b in zip(outputs, wanted)
    )
    return "" if alike else "its traced graph gives other numbers"


def tensors(value: Any) -> list[Tensor]:
    """The tensors of what a network returned."""
    return [each for each in leaves(value) if isinstance(each, Tensor)]


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
        bias = folded.get_parameter("bias")
        bias.requires_grad_(folded.get_parameter("weight").requires_grad)  # torch: not where the layer had none
        put(traced.root, str(before.target), folded)
        after = _with_children(traced.graph, node, norm, before)
        node.replace_all_uses_with(after)
        traced.graph.erase_node(node)
        traced.ends = [(path, after if end is node else end) for path, end in traced.ends]
        traced.ends.insert(0, (str(node.target), after))


def _with_children(graph: fx.Graph, node: fx.Node, norm: nn.Module, before: fx.Node) -> fx.Node:
    """What a folded norm does after it normalized: its own activation, if it has one."""
    after = before
    for name, child in norm._modules.items() if is_norm_with_activation(norm) else ():
        if not isinstance(child, nn.Identity):
            with graph.inserting_before(node):
                after = graph.create_node("call_module", f"{node.target}.{name}", (after,))
    return after


def put(root: nn.Module, path: str, module: nn.Module) -> None:
    """Sets the module at a path."""
    parent, _, name = path.rpartition(".")
    root.get_submodule(parent)._modules[name] = module


def assemble(traced: Traced, *, lean: bool = True) -> QuantizedNet:
    """A network of the modules, parameters and buffers that the graph uses, under the paths they had.

    Without `lean` modules that were traced through keep what they held, also what is no longer used.
    """
    traced.graph.lint()
    kept = Tap()
    for node in traced.graph.nodes:
        if node.op in ("call_module", "get_attr"):
            _place(kept, traced.root, str(node.target))
    if lean:
        used = {str(node.target) for node in traced.graph.nodes if node.op in ("call_module", "get_attr")}
        _drop_unused(kept, "", used)
    code = type(fx.GraphModule(kept, traced.graph)).forward
    net = QuantizedNet(code)
    net._modules.update(kept._modules)
    net._parameters.update(kept._parameters)
    for name, buffer in kept._buffers.items():
        net.register_buffer(name, buffer, persistent=name not in kept._non_persistent_buffers_set)
    return net


def _drop_unused(tap: nn.Module, path: str, used: set[str]) -> None:
    """Takes from taps, in place, tensors and modules that no node of the graph uses."""
    prefix = f"{path}." if path else ""
    for table in (tap._parameters, tap._buffers):
        for name in [name for name in table if f"{prefix}{name}" not in used]:
            del table[name]
    tap._non_persistent_buffers_set &= tap._buffers.keys()
    for name, child in list(tap._modules.items()):
        here = f"{prefix}{name}"
        if isinstance(child, Tap):
            _drop_unused(child, here, used)
        elif here not in used and not any(each.startswith(f"{here}.") for each in used):
            del tap._modules[name]


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
