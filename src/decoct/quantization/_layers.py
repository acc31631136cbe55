"""Which layers of a graph can compute in int8, and through which tensors integers flow between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from decoct.quantization._graph import Graph, attribute

PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum")
RECURRENT = ("LSTM", "GRU", "RNN")
CHAIN = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid")
"""Operators that the runtime computes in int8 between layers, where all they read is quantized."""
PASS = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "DepthToSpace")
"""Operators that move codes as they are."""
ROWS = 16
"""A table of at least so many rows is an embedding."""


@dataclass(frozen=True)
class Layer:
    """A node with weights, or one that cannot take integers, and why (`cause`).

    `axis` of the weight counts its output channels; `table`: an embedding.
    """

    node: str
    module: str
    operator: str
    weight: str = ""
    axis: int = 0
    bias: str = ""
    cause: str = ""
    table: bool = False


def layers_of(graph: Graph) -> dict[str, Layer]:
    """Convolutions, matrix products, recurrent layers and embeddings of a graph, by the names of their nodes."""
    found = {}
    for node in graph.nodes:
        if node.op_type in (*PRODUCTS, *RECURRENT):
            found[node.name] = _layer(graph, node)
        elif _is_table(graph, node):
            found[node.name] = Layer(node.name, graph.module(node), "Gather", weight=node.input[0], table=True)
    return found


def _layer(graph: Graph, node: Any) -> Layer:
    module, weight = graph.module(node), node.input[1] if len(node.input) > 1 else ""
    cause = _cause(graph, node, weight)
    if cause:
        return Layer(node.name, module, node.op_type, cause=cause)
    axis = {"Conv": 0, "MatMul": 1, "Gemm": 1 - attribute(node, "transB", 0)}[node.op_type]
    bias = node.input[2] if len(node.input) > 2 else ""
    return Layer(node.name, module, node.op_type, weight, axis, bias)


def _cause(graph: Graph, node: Any, weight: str) -> str:
    """Why a node cannot compute in int8; empty where it can."""
    if node.op_type in RECURRENT:
        dynamic = "; dynamic quantization has one" if node.op_type == "LSTM" else ""
        return f"the runtime has no static int8 kernel for {node.op_type}{dynamic}"
    if node.op_type in ("ConvTranspose", "Einsum"):
        return f"the runtime has no int8 kernel for {node.op_type}"
    if weight not in graph.constants:
        return "both factors are activations" if node.op_type == "MatMul" else "its weights are no constants"
    if graph.array(weight).dtype != np.float32:
        return f"its weights are {graph.array(weight).dtype}, not float32"
    if node.op_type == "MatMul" and graph.array(weight).ndim != 2:
        return f"its weights have {graph.array(weight).ndim} axes, not 2"
    if node.input[0] in graph.constants:
        return "its input is a constant"
    if len(node.input) > 2 and node.input[2] and node.input[2] not in graph.constants:
        return "its bias is no constant"
    if node.op_type == "Gemm" and not _is_plain(graph, node):
        return "it scales, transposes or adds in a way that has no int8 kernel"
    return ""


def _is_plain(graph: Graph, node: Any) -> bool:
    factors = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    bias = graph.array(node.input[2]).ndim == 1 if len(node.input) > 2 and node.input[2] else True
    return factors == (1.0, 1.0) and not attribute(node, "transA", 0) and bias


def _is_table(graph: Graph, node: Any) -> bool:
    if node.op_type != "Gather" or node.input[0] not in graph.constants or attribute(node, "axis", 0) != 0:
        return False
    table = graph.array(node.input[0])
    return table.dtype == np.float32 and table.ndim == 2 and len(table) >= ROWS


@dataclass(frozen=True)
class Flow:
    """Which tensors are quantized: by name, the tensor whose scale they share.

    `kernels`: made by an operator that computes in integers, so that all readers see the codes; `readers`: by tensor,
    the nodes that take integers. `caps`: the highest value of a tensor behind a clipping activation.
    """

    tensors: Mapping[str, str]
    kernels: frozenset[str]
    readers: Mapping[str, frozenset[str]]
    caps: Mapping[str, float]


def flow(graph: Graph, layers: Iterable[Layer]) -> Flow:
    """The tensors to quantize, so that these layers, and what lies between them, run in int8 kernels."""
    by_node = {each.node: each for each in layers if not each.table}
    candidates = _candidates(graph, by_node)
    kept = _wanted(graph, by_node, candidates)
    tensors: dict[str, str] = {}
    kernels: set[str] = set()
    readers: dict[str, set[str]] = {}
    for node in graph.nodes:
        if node.name in by_node:
            _read(tensors, readers, node.input[0], node.name)
            if node.op_type == "Conv":
                tensors.setdefault(end_of(graph, node), end_of(graph, node))
                kernels.add(end_of(graph, node))
        elif node.name in kept:
            data = node.input[:1] if node.op_type in PASS else node.input
            for name in data:
                _read(tensors, readers, name, node.name)
            end = end_of(graph, node)
            tensors[end] = tensors[node.input[0]] if node.op_type in PASS else end
            kernels.add(end)
    caps = {name: cap for name in tensors if (cap := _cap(graph, name)) is not None}
    return Flow(tensors, frozenset(kernels), {name: frozenset(each) for name, each in readers.items()}, caps)


def _read(tensors: dict[str, str], readers: dict[str, set[str]], name: str, node: str) -> None:
    tensors.setdefault(name, name)
    readers.setdefault(name, set()).add(node)


def end_of(graph: Graph, node: Any) -> str:
    """The output of a node, behind the rectifier that its kernel takes in, where it alone reads the node."""
    out: str = node.output[0]
    after = graph.alone(out) if node.op_type not in PASS else None
    if after is not None and (after.op_type == "Relu" or (after.op_type == "Clip" and _clip(graph, after))):
        return str(after.output[0])
    return out


def _clip(graph: Graph, node: Any) -> tuple[float, float] | None:
    """The limits of a Clip from zero up; None for another."""
    if len(node.input) < 3 or any(name not in graph.constants for name in node.input[1:]):
        return None
    low, high = (float(graph.array(name)) for name in node.input[1:3])
    return (low, high) if low == 0.0 < high else None


def _cap(graph: Graph, name: str) -> float | None:
    maker = graph.maker.get(name)
    limits = _clip(graph, maker) if maker is not None and maker.op_type == "Clip" else None
    return limits[1] if limits else None


def _candidates(graph: Graph, by_node: Mapping[str, Layer]) -> dict[str, Any]:
    """The operators between layers whose inputs are all quantized."""
    quantized = {node.input[0] for node in graph.nodes if node.name in by_node}
    found = {}
    for node in graph.nodes:
        if node.name in by_node and node.op_type == "Conv":
            quantized.add(end_of(graph, node))
        elif node.op_type in CHAIN and all(name in quantized for name in node.input if name):
            quantized.add(end_of(graph, node))
            found[node.name] = node
        elif node.op_type in PASS and node.input[0] in quantized and len(node.output) == 1:
            quantized.add(node.output[0])
            found[node.name] = node
    return found


def _wanted(graph: Graph, by_node: Mapping[str, Layer], candidates: Mapping[str, Any]) -> set[str]:
    """Those of the candidates that lead to another operator in integers."""
    needed = {node.input[0] for node in graph.nodes if node.name in by_node}
    kept = set()
    for node in reversed(graph.nodes):
        if node.name in candidates and end_of(graph, node) in needed:
            kept.add(node.name)
            needed |= {node.input[0]} if node.op_type in PASS else set(node.input)
    return kept
