"""Where fake quantizers go: the pattern that ONNX Runtime turns into integer kernels."""

from __future__ import annotations

import copy
import operator
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import fx, nn

from decoct.models.rewrites import Rewriting, mark
from decoct.quantization.aware.modules import ActivationQuantizer, DynamicLinear, QuantizedLayer, QuantizedNet, Tap
from decoct.quantization.aware.tracing import CONVOLUTIONS, Traced, assemble, fold_batch_norm, put, trace

QUANTIZERS = "quantizers"
RELU: tuple[Any, ...] = (nn.ReLU, F.relu, torch.relu, "relu", "relu_")
RELU6: tuple[Any, ...] = (nn.ReLU6, F.relu6)
JOINING: tuple[Any, ...] = (
    operator.add, operator.iadd, torch.add, "add", "add_", operator.mul, operator.imul, torch.mul, "mul", torch.cat
)  # fmt: skip
VANISHING: tuple[Any, ...] = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
    F.dropout, "contiguous", Tap,
)  # fmt: skip
PASSING: tuple[Any, ...] = (
    *VANISHING, nn.MaxPool1d, nn.MaxPool2d, nn.Flatten, F.max_pool2d, F.max_pool1d, torch.flatten, torch.reshape,
    torch.transpose, torch.permute, torch.squeeze, torch.unsqueeze, "flatten", "view", "reshape", "transpose",
    "permute", "squeeze", "unsqueeze",
)  # fmt: skip
"""What gives values of the grid that it takes."""


class FakeQuantizers(Rewriting):
    """Fake quantizers in a network; batch norm is folded first.

    `bits` of the weights, by path of each quantized layer. graph: the network is traced by torch.fx and activations
    get ranges of their own, after ReLU and after additions. modules: linear layers alone, with dynamic activations.
    `form` 1 is that of earlier files: folded batch norms keep their tensors, those of timm are not folded.
    """

    use: ClassVar[str] = "fake_quantizers"
    layout: Literal["graph", "modules"]
    bits: dict[str, int]
    activation_bits: int = 8
    learned: bool = True
    form: Literal[1, 2] = 1

    def apply(self, module: nn.Module) -> nn.Module:
        device = next((each.device for each in module.parameters()), torch.device("cpu"))
        if self.layout == "graph":
            made: nn.Module = self._graph(trace(module, whole_norms=self.form > 1))
        else:
            made = self._modules(copy.deepcopy(module))
        made.train(module.training)
        return mark(made.to(device), self, module)

    def _modules(self, module: nn.Module) -> nn.Module:
        made: dict[int, nn.Module] = {}
        for path, bits in self.bits.items():
            layer = module.get_submodule(path)
            if isinstance(layer, DynamicLinear):  # another path of a shared layer
                continue
            assert isinstance(layer, nn.Linear), path
            if id(layer) not in made:
                made[id(layer)] = DynamicLinear(layer, bits, learned=self.learned)
            put(module, path, made[id(layer)])
        return module

    def _graph(self, traced: Traced) -> QuantizedNet:
        fold_batch_norm(traced)
        sources = _sources(traced, self.bits)
        self._quantize_values(traced)
        made: dict[int, nn.Module] = {}
        for path, bits in self.bits.items():
            layer = traced.root.get_submodule(path)
            if id(layer) not in made:
                source = _quantizer(traced, sources[path])
                made[id(layer)] = QuantizedLayer(layer, bits, learned=self.learned, source=source)
            put(traced.root, path, made[id(layer)])
        return assemble(traced, lean=self.form > 1)

    def _quantize_values(self, traced: Traced) -> None:
        wanted = wanted_values(traced, self.bits)
        holder = nn.Module()
        traced.root.add_module(QUANTIZERS, holder)
        current: dict[fx.Node, fx.Node] = {}
        for node in wanted:
            ceiling = 6.0 if is_one_of(traced, node, RELU6) else None
            quantizer = ActivationQuantizer(self.activation_bits, learned=self.learned, ceiling=ceiling)
            holder.add_module(node.name, quantizer)
            current[node] = _after(traced.graph, node, f"{QUANTIZERS}.{node.name}")
        for node in list(traced.graph.nodes):
            source = source_of(traced, node)
            if source is not node and source in current and not is_one_of(traced, node, VANISHING):
                current[node] = _after(traced.graph, node, f"{QUANTIZERS}.{source.name}")
        for path, node in traced.ends:
            if path not in self.bits:
                put(traced.root, path, _tap(traced.root.get_submodule(path)))
                current[node] = _after(traced.graph, current.get(node, node), path)


def _sources(traced: Traced, layers: Any) -> dict[str, set[fx.Node]]:
    """By path of a layer, the nodes that made what it takes, over all its calls under any path."""
    found: dict[int, set[fx.Node]] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module" and node.target in layers:
            found.setdefault(id(traced.module_at(node)), set()).add(source_of(traced, _input(node)))
    return {path: found[id(traced.root.get_submodule(path))] for path in layers}


def _quantizer(traced: Traced, sources: set[fx.Node]) -> ActivationQuantizer | None:
    """The one quantizer of some values; None where there are several."""
    if len(sources) != 1:
        return None
    found = traced.root.get_submodule(f"{QUANTIZERS}.{next(iter(sources)).name}")
    assert isinstance(found, ActivationQuantizer)
    return found


def _tap(module: nn.Module) -> Tap:
    tap = Tap()
    tap._modules.update(module._modules)
    tap._parameters.update(module._parameters)
    tap._buffers.update(module._buffers)
    return tap


def _after(graph: fx.Graph, node: fx.Node, path: str) -> fx.Node:
    """Calls the module at `path` on what a node gives; all that used the node uses the result."""
    with graph.inserting_after(node):
        made = graph.create_node("call_module", path, (node,))
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
    return made


def quantizable(traced: Traced) -> list[str]:
    """Paths of the convolutions and linear layers that the graph calls, in its order."""
    calls = [node for node in traced.graph.nodes if isinstance(traced.module_at(node), (*CONVOLUTIONS, nn.Linear))]
    return list(dict.fromkeys(str(node.target) for node in calls))


def wanted_values(traced: Traced, layers: Any) -> list[fx.Node]:
    """The nodes whose values are to be on a grid, so that the layers at the paths `layers` become integer kernels:
    what they take, what convolutions give (after their ReLU), and sums and products of such values."""
    wanted: dict[fx.Node, None] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module" and node.target in layers:
            wanted[source_of(traced, _input(node))] = None
            if isinstance(traced.module_at(node), CONVOLUTIONS):
                wanted[_with_activation(traced, node)] = None
        elif is_one_of(traced, node, JOINING):
            operands = [source_of(traced, each) for each in node.all_input_nodes]
            if len(operands) > 1 and all(each in wanted for each in operands):
                wanted[_with_activation(traced, node)] = None
    return [node for node in traced.graph.nodes if node in wanted]


def source_of(traced: Traced, node: fx.Node) -> fx.Node:
    """The node that made the values which `node` passes on."""
    while is_one_of(traced, node, PASSING):
        node = _input(node)
    return node


def is_one_of(traced: Traced, node: fx.Node, kinds: tuple[Any, ...]) -> bool:
    """Whether a node calls a module of these classes, or one of these functions or methods."""
    module = traced.module_at(node)
    if module is not None:
        return type(module) in kinds or (node.target in traced.random and nn.Dropout in kinds)
    return node.op in ("call_function", "call_method") and node.target in kinds


def _with_activation(traced: Traced, node: fx.Node) -> fx.Node:
    """The ReLU that alone follows, else the node."""
    users = list(node.users)
    return users[0] if len(users) == 1 and is_one_of(traced, users[0], (*RELU, *RELU6)) else node


def _input(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]
