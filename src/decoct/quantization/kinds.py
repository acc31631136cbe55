"""Kinds: the layers of a float graph by operator, shape and the activation after them, which integers slow alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from decoct.quantization._graph import Graph, attribute, prepared
from decoct.quantization._layers import PRODUCTS, RECURRENT
from decoct.training.compression import Change

if TYPE_CHECKING:
    import onnx

SMALL = 2**16
"""A linear layer of fewer weights is small: quantizing what it reads costs a good part of what it computes."""
ACTIVATIONS = {
    "Sigmoid": "SiLU",
    "HardSigmoid": "hard swish",
    "HardSwish": "hard swish",
    "Gelu": "GELU",
    "Erf": "GELU",
    "QuickGelu": "GELU",
    "Tanh": "tanh",
    "Softplus": "mish",
    "Elu": "ELU",
}
NORMAL = ("Div", "Add", "Mul", "BatchNormalization")
"""Operators that may stand between a layer and its activation."""


def kinds_of(proto: onnx.ModelProto, changes: Iterable[Change]) -> dict[str, tuple[str, ...]]:
    """The modules that a quantization turned into integers, by kind, in the order of the graph.

    >>> from onnx import parser
    >>> text = "<ir_version: 8, opset_import: [\\"\\": 20]> g (float[1,4] x) => (float[1,2] y)"
    >>> text += " <float[4,2] fc.weight = {1,2,3,4,5,6,7,8}> { h = MatMul(x, fc.weight) y = Gelu(h) }"
    >>> kinds_of(parser.parse_model(text.replace("fc.weight", "w")), [Change("MatMul_0", "bits", 32, 8)])
    {'small linear layers before GELU': ('MatMul_0',)}
    """
    graph = Graph(prepared(proto))
    names: dict[str, str] = {}
    for node in graph.nodes:
        kind = _kind(graph, node)
        if kind:
            names.setdefault(graph.module(node), kind)
            names.setdefault(node.name, kind)
    found: dict[str, list[str]] = {}
    for each in changes:
        if each.after < each.before:
            kind = names.get(each.path.removeprefix("model."), names.get(each.path, "other layers"))
            found.setdefault(kind, []).append(each.path)
    return {kind: tuple(dict.fromkeys(paths)) for kind, paths in found.items()}


def _kind(graph: Graph, node: Any) -> str:
    """What a layer is; empty for what is none."""
    if node.op_type in RECURRENT:
        return f"{node.op_type} layers"
    if node.op_type == "Gather":
        return "embeddings"
    if node.op_type not in PRODUCTS:
        return ""
    activation = _activation(graph, node)
    return f"{_shape(graph, node)}{f' before {activation}' if activation else ''}"


def _shape(graph: Graph, node: Any) -> str:
    weight = node.input[1]
    sizes = list(graph.constants[weight].dims) if weight in graph.constants else []
    if node.op_type not in ("Conv", "ConvTranspose"):
        count = 1
        for size in sizes:
            count *= size
        return "small linear layers" if count < SMALL else "linear layers"
    if attribute(node, "group", 1) > 1:
        return "depthwise convolutions" if sizes[1:2] == [1] else "grouped convolutions"
    return "pointwise convolutions" if set(sizes[2:]) == {1} else "convolutions"


def _activation(graph: Graph, node: Any) -> str:
    """The activation, no rectifier, that reads what a layer gives."""
    name = node.output[0]
    for _ in range(len(NORMAL)):
        readers = graph.readers.get(name, [])
        known = [ACTIVATIONS[each.op_type] for each in readers if each.op_type in ACTIVATIONS]
        if known:
            return known[0]
        after = next((each for each in readers if each.op_type in NORMAL), None)
        if after is None:
            return ""
        name = after.output[0]
    return ""
