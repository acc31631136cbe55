"""Floating: the float graph behind one with quantizers inside, beside which that is timed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from decoct.quantization._graph import Graph, attribute, inner_inputs, replace_nodes

if TYPE_CHECKING:
    import onnx


DYNAMIC = "DynamicQuantizeLinear"


def has_quantizers(proto: onnx.ModelProto) -> bool:
    """Whether the graph holds quantizers, which round activations in fixed ranges."""
    return any(node.op_type == "QuantizeLinear" for node in proto.graph.node)


def in_integers(proto: onnx.ModelProto) -> bool:
    """Whether the graph holds quantizers of any kind."""
    return any(node.op_type in ("QuantizeLinear", DYNAMIC) for node in proto.graph.node)


def without_quantizers(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes in float what a graph with quantizers computes: weights are what their codes stand for, and
    no activation is rounded."""
    import onnx
    from onnx import helper, numpy_helper

    made = onnx.ModelProto()
    made.CopyFrom(proto)
    graph, nodes = Graph(made), []
    values: dict[str, np.ndarray] = {}
    passed: dict[str, str] = {}
    for node in graph.nodes:
        if node.op_type == "DequantizeLinear" and node.input[0] in graph.constants:
            values[node.output[0]] = _dequantized(graph, node)
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear", DYNAMIC):
            passed[node.output[0]] = node.input[0]
        elif node.op_type == "MatMulInteger":
            cast, product, scale = _after(graph, node)
            weight = f"{node.input[1]}_in_float"
            values[weight] = graph.array(node.input[1]).astype(np.float32) * scale
            passed |= {cast.output[0]: node.output[0], product.output[0]: node.output[0]}
            nodes.append(helper.make_node("MatMul", [node.input[0], weight], [node.output[0]], name=node.name))
        else:
            nodes.append(node)
    kept = [each for each in nodes if each.output[0] not in passed]
    for node in kept:
        node.input[:] = [_source(passed, name) for name in node.input]
    ends = [each.name for each in made.graph.output if each.name in passed]
    kept += [helper.make_node("Identity", [_source(passed, name)], [name]) for name in ends]
    made.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    copies = [type(node).FromString(node.SerializeToString()) for node in _read(kept, made)]
    replace_nodes(made, copies)
    return made


def _source(passed: dict[str, str], name: str) -> str:
    while name in passed:
        name = passed[name]
    return name


def _dequantized(graph: Graph, node: Any) -> np.ndarray:
    """The numbers that constant codes stand for."""
    codes, scale = graph.array(node.input[0]).astype(np.float32), graph.array(node.input[1])
    if len(node.input) > 2 and node.input[2]:
        zero = graph.array(node.input[2]).astype(np.float32)
    else:
        zero = np.zeros_like(scale)
    if scale.ndim:
        shape = [1] * codes.ndim
        shape[attribute(node, "axis", 1)] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return np.ascontiguousarray((codes - zero) * scale, np.float32)


def _after(graph: Graph, node: Any) -> tuple[Any, Any, np.ndarray]:
    """What turns a product of integers into floats: the cast, the product with both scales, the scale of weights."""
    cast = graph.alone(node.output[0])
    assert cast is not None, "a product of integers has one reader"
    product = graph.alone(cast.output[0])
    assert product is not None, "a cast product of integers has one reader"
    scales = next(graph.maker[name] for name in product.input if name != cast.output[0])
    return cast, product, next(graph.array(name) for name in scales.input if name in graph.constants)


def _read(nodes: list[Any], proto: onnx.ModelProto) -> list[Any]:
    """Those nodes whose results something reads."""
    wanted = {each.name for each in proto.graph.output}
    found = []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= set(inner_inputs(node))
            found.append(node)
    return found[::-1]
