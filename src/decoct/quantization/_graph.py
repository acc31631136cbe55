"""An ONNX graph as quantization looks at it: who makes and reads a tensor, what is constant, whose layer a node is."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from decoct.errors import PathError, RecipeError, did_you_mean

if TYPE_CHECKING:
    import onnx

LARGEST = 2**31 - 1


class Graph:
    """Tables over a graph that is not changed while they are used."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        from onnx import numpy_helper

        self.proto = proto
        self.nodes = list(proto.graph.node)
        self.constants: dict[str, Any] = {each.name: each for each in proto.graph.initializer}
        self.outputs = {each.name for each in proto.graph.output}
        self.maker: dict[str, Any] = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(inner_inputs(node)):
                self.readers.setdefault(name, []).append(node)
        self._to_array = numpy_helper.to_array

    def array(self, name: str) -> np.ndarray:
        """The value of a constant."""
        found: np.ndarray = self._to_array(self.constants[name])
        return found

    def alone(self, name: str) -> Any | None:
        """The only node that reads a tensor, where there is one and it is no output."""
        found = self.readers.get(name, [])
        return found[0] if len(found) == 1 and name not in self.outputs else None

    def module(self, node: Any) -> str:
        """The module that a node came from, by the names of its parameters; the node's name where it has none."""
        for each in (node, self._bias(node)):
            for name in () if each is None else map(self._stored, each.input):
                if name in self.constants and "." in name:
                    return name.rpartition(".")[0].removeprefix("model.")
        return str(node.name)

    def _stored(self, name: str) -> str:
        """The constant behind a dequantizer; else the tensor itself."""
        maker = self.maker.get(name)
        return str(maker.input[0]) if maker is not None and maker.op_type == "DequantizeLinear" else name

    def _bias(self, node: Any) -> Any | None:
        after = self.alone(node.output[0]) if node.output else None
        return after if after is not None and after.op_type == "Add" else None


def inner_inputs(node: Any) -> Iterator[str]:
    """All tensors that a node reads, in the graphs inside it too."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
            for inner in graph.node:
                yield from inner_inputs(inner)


def attribute(node: Any, name: str, default: Any) -> Any:
    """An attribute of a node."""
    from onnx import helper

    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


def prepared(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with constants folded, batch norms in their convolutions, biases in their matrix products, and averages
    over an image as pooling; by the runtime's machine-independent optimisations. RecipeError if it cannot run."""
    import onnx
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prepared.onnx"
        options.optimized_model_filepath = str(path)
        try:
            onnxruntime.InferenceSession(serialized(proto), options, providers=["CPUExecutionProvider"])
        except (state.Fail, state.InvalidGraph, state.NotImplemented, state.InvalidArgument) as error:
            reason = str(error).strip().partition("\n")[0][:300]
            raise RecipeError(f"ONNX Runtime {onnxruntime.__version__} cannot run the float graph: {reason}") from None
        found = onnx.load(str(path))
    used = {node.domain for node in found.graph.node} | {"", "ai.onnx"}
    imports = [each for each in found.opset_import if each.domain in used]
    del found.opset_import[:]
    found.opset_import.extend(imports)
    del found.graph.value_info[:]
    _pool(found)
    _name_nodes(found)
    return found


def serialized(proto: onnx.ModelProto) -> bytes:
    """The bytes of a graph; RecipeError where one message cannot hold it."""
    size = proto.ByteSize()
    if size > LARGEST:
        raise RecipeError(f"the float graph takes {size} bytes, quantization works on at most {LARGEST}")
    found: bytes = proto.SerializeToString(deterministic=True)
    return found


def _pool(proto: onnx.ModelProto) -> None:
    """ReduceMean over the two last axes of `[N, C, H, W]` becomes GlobalAveragePool, which runs in integers."""
    import onnx
    from onnx import helper

    graph = Graph(proto)
    ranks = _ranks(proto)
    nodes: list[Any] = []
    for node in graph.nodes:
        axes = node.input[1] if node.op_type == "ReduceMean" and len(node.input) > 1 else ""
        spatial = axes in graph.constants and sorted(graph.array(axes).ravel() % 4) == [2, 3]
        if not spatial or ranks.get(node.input[0]) != 4:
            nodes.append(node)
            continue
        [out] = node.output
        if attribute(node, "keepdims", 1):
            nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [out], name=node.name))
            continue
        wide = f"{out}_pooled"
        nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [wide], name=node.name))
        nodes.append(helper.make_node("Flatten", [wide], [out], name=f"{node.name}_flat", axis=1))
    replace_nodes(proto, nodes)
    onnx.checker.check_model(proto)


def _ranks(proto: onnx.ModelProto) -> dict[str, int]:
    import onnx

    inferred = onnx.shape_inference.infer_shapes(proto).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    return {
        each.name: len(each.type.tensor_type.shape.dim) for each in values if each.type.tensor_type.HasField("shape")
    }


def _name_nodes(proto: onnx.ModelProto) -> None:
    """Gives nodes without a name, or with another's, one of their own."""
    taken: set[str] = set()
    for number, node in enumerate(proto.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{number}"
        taken.add(node.name)


def replace_nodes(proto: onnx.ModelProto, nodes: Sequence[Any]) -> None:
    """Puts other nodes in place of all, and drops constants that nothing reads any more."""
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    read = {name for node in proto.graph.node for name in inner_inputs(node)}
    read |= {each.name for each in proto.graph.output}
    kept = [each for each in proto.graph.initializer if each.name in read]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)


def chosen(patterns: Sequence[str], layers: Mapping[str, str], setting: str = "protect") -> set[str]:
    """The names of the nodes that patterns of node names or module paths mean; `layers` maps node to module.

    A path means the modules below it too. PathError for a pattern that names none.
    """
    found: set[str] = set()
    for pattern in patterns:
        named = {
            node
            for node, module in layers.items()
            if fnmatchcase(node, pattern) or fnmatchcase(module, pattern) or fnmatchcase(module, f"{pattern}.*")
        }
        if not named:
            known = [*dict.fromkeys(layers.values()), *layers]
            raise PathError(f"{setting}: no layer {pattern!r}; {did_you_mean(pattern, known)}")
        found |= named
    return found
