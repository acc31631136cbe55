"""Folding: what only moves or cuts constant weights is done once, so that products by it have constant factors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

MOVES = ("Split", "Slice", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity")
"""Operators that give the numbers they take, in another place or shape."""
PARTS = ("weight", "bias")


def folded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which operators that only move float32 constants are constants themselves, named after what they move.

    Weights that the exporter leaves to be split at run time, as those of attention with fewer heads, become weights of
    a product each. Constants that nothing reads any more go.
    """
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(proto)
    constants = {each.name: each for each in made.graph.initializer}
    names = dict[str, str]()
    taken = {name for node in made.graph.node for name in [*node.input, *node.output]} | set(constants)
    nodes = []
    outputs = {each.name for each in made.graph.output}
    for node in list(made.graph.node):
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
        if not _moves(node, constants, outputs):
            nodes.append(node)
            continue
        for number, (old, tensor) in enumerate(zip(node.output, _run(made, node, constants))):
            new = _free(_named(node.input[0], number if len(node.output) > 1 else None), taken)
            tensor.name = names[old] = new
            constants[new] = tensor
    if names:
        _put(made, nodes, constants)
    return made


def _moves(node: Any, constants: dict[str, Any], outputs: set[str]) -> bool:
    """Whether a node only moves a constant of 32-bit floats, and none of its answers is the graph's."""
    if node.op_type not in MOVES or node.domain not in ("", "ai.onnx") or outputs & set(node.output):
        return False
    given = [name for name in node.input if name]
    return all(name in constants for name in given) and constants[node.input[0]].data_type == 1


def _run(proto: onnx.ModelProto, node: Any, constants: dict[str, Any]) -> list[Any]:
    """What a node gives, as constants."""
    from onnx import TensorProto, helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    given = [constants[name] for name in dict.fromkeys(node.input) if name]
    gives = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.output]
    graph = helper.make_graph([node], "fold", [], gives, initializer=given)
    alone = helper.make_model(graph, opset_imports=list(proto.opset_import), ir_version=proto.ir_version)
    return [numpy_helper.from_array(np.ascontiguousarray(each)) for each in ReferenceEvaluator(alone).run(None, {})]


def _named(name: str, part: int | None) -> str:
    """The name of a moved constant, of its part of that number if it was split, such that its module is seen.

    >>> _named("attention.in_proj_weight", 1), _named("layer.weight", 0), _named("layer.weight", None)
    ('attention.in_proj.1.weight', 'layer.0.weight', 'layer.weight')
    """
    if part is None:
        return name
    for kind in PARTS:
        if name.endswith((f".{kind}", f"_{kind}")):
            return f"{name[: -len(kind) - 1]}.{part}.{kind}"
    return f"{name}.{part}"


def _free(stem: str, taken: set[str]) -> str:
    found, number = stem, 0
    while found in taken:
        number += 1
        found = f"{stem}{number}"
    taken.add(found)
    return found


def _put(proto: onnx.ModelProto, nodes: list[Any], constants: dict[str, Any]) -> None:
    """The nodes and the constants that are still read."""
    from decoct.quantization._graph import replace_nodes

    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    known = {each.name for each in proto.graph.initializer}
    proto.graph.initializer.extend(each for name, each in constants.items() if name not in known)
    replace_nodes(proto, copies)
