"""Quantizers in a graph: pairs of QuantizeLinear and DequantizeLinear that the runtime turns into int8 kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from decoct.quantization._graph import Graph, replace_nodes
from decoct.quantization._layers import Flow, Layer, flow
from decoct.quantization.observers import Affine, weight_scales

if TYPE_CHECKING:
    import onnx

LIMIT = 2**30
"""A bias takes at most this code of its 32 bits."""
TINY = float(np.finfo(np.float32).tiny)


class Writer:
    """Writes a graph with quantizers, from a float one that stays as it is.

    `codes`: for each tensor that the flow names as a source, its 8-bit code.
    """

    def __init__(
        self,
        graph: Graph,
        codes: Mapping[str, Affine],
        *,
        per_channel: bool = True,
        weights: Literal["min_max", "mse"] = "min_max",
    ) -> None:
        self.graph, self.codes = graph, codes
        self.per_channel, self.weights = per_channel, weights

    def write(self, layers: Mapping[str, Layer]) -> onnx.ModelProto:
        """The graph in which these layers, by node, compute in int8."""
        import onnx

        self._made: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._pairs: set[str] = set()
        plan = flow(self.graph, layers.values())
        for port in self.graph.proto.graph.input:
            self._quantizer(port.name, port.name, plan)
        for node in self.graph.nodes:
            self._node(node, layers.get(node.name), plan)
        proto = onnx.ModelProto()
        proto.CopyFrom(self.graph.proto)
        proto.graph.initializer.extend(self._constants.values())
        replace_nodes(proto, self._made)
        return proto

    def _node(self, node: Any, layer: Layer | None, plan: Flow) -> None:
        if layer is not None and layer.table:
            self._table(node, layer)
            self._quantizer(node.output[0], node.output[0], plan)
            return
        copied = type(node)()
        copied.CopyFrom(node)
        for i, name in enumerate(node.input):
            wants = name in plan.kernels or node.name in plan.readers.get(name, ())
            if name in plan.tensors and wants:
                copied.input[i] = self._dequantizer(name, node.name, plan)
        if layer is not None:
            self._layer(copied, node, layer, self.codes[plan.tensors[node.input[0]]])
        outputs = [name for name in node.output if name in plan.kernels and name in self.graph.outputs]
        for i, name in enumerate(node.output):
            if name in outputs:
                copied.output[i] = f"{name}_float"
        self._made.append(copied)
        for name in node.output:
            self._quantizer(name, f"{name}_float" if name in outputs else name, plan)
            if name in outputs:
                self._dequantize(f"{name}_q", plan.tensors[name], name)

    def _quantizer(self, name: str, floating: str, plan: Flow) -> None:
        if name not in plan.tensors:
            return
        scale, zero = self._code_of(plan.tensors[name])
        self._add("QuantizeLinear", [floating, scale, zero], f"{name}_q")

    def _dequantizer(self, name: str, reader: str, plan: Flow) -> str:
        """A pair's second half for one reader alone, as kernels want it."""
        out = f"{name}_for_{reader}"
        if out not in self._pairs:
            self._pairs.add(out)
            self._dequantize(f"{name}_q", plan.tensors[name], out)
        return out

    def _dequantize(self, codes: str, source: str, out: str) -> None:
        self._add("DequantizeLinear", [codes, *self._code_of(source)], out)

    def _code_of(self, source: str) -> tuple[str, str]:
        code = self.codes[source]
        scale, zero = f"{source}_s", f"{source}_z"
        self._constant(scale, np.float32(code.scale))
        self._constant(zero, np.uint8(code.zero_point))
        return scale, zero

    def _layer(self, copied: Any, node: Any, layer: Layer, code: Affine) -> None:
        """Weights in int8 and bias in int32, the scale of the latter the product of input's and weights'."""
        weight = self.graph.array(layer.weight)
        bias = self.graph.array(layer.bias) if layer.bias else None
        axis = layer.axis if self.per_channel else None
        scales = fit_bias(weight_scales(weight, axis, self.weights), bias, code.scale)
        name = self._weight(layer.weight, weight, axis, scales)
        out = f"{layer.weight}_for_{layer.node}"
        at = {"axis": axis} if axis is not None else {}
        self._add("DequantizeLinear", [f"{name}_q", f"{name}_s", f"{name}_z"], out, "", **at)
        copied.input[1] = out
        if bias is not None:
            copied.input[2] = self._bias(layer, bias, scales, code.scale)

    def _weight(self, name: str, weight: np.ndarray, axis: int | None, scales: np.ndarray) -> str:
        """Stores a weight's codes; layers that share a weight share them where the scales agree."""
        shape = [1] * weight.ndim
        if axis is not None:
            shape[axis] = -1
        codes = np.clip(np.rint(weight / scales.reshape(shape)), -127, 127).astype(np.int8)
        stored, number = name, 1
        while not self._same(f"{stored}_s", scales):
            number += 1
            stored = f"{name}_{number}"
        self._constant(f"{stored}_q", codes)
        self._constant(f"{stored}_s", scales if axis is not None else scales[0])
        self._constant(f"{stored}_z", np.zeros(scales.shape if axis is not None else (), np.int8))
        return stored

    def _same(self, name: str, scales: np.ndarray) -> bool:
        from onnx import numpy_helper

        found = self._constants.get(name)
        return found is None or np.array_equal(numpy_helper.to_array(found).ravel(), scales.ravel())

    def _bias(self, layer: Layer, bias: np.ndarray, scales: np.ndarray, scale: float) -> str:
        name = f"{layer.node}_bias"
        own = (np.float32(scale) * scales).astype(np.float32)
        codes = np.rint(bias.astype(np.float64) / own.astype(np.float64))
        limits = np.iinfo(np.int32)
        self._constant(f"{name}_q", np.clip(codes, limits.min, limits.max).astype(np.int32))
        at = {"axis": 0} if self.per_channel else {}
        self._constant(f"{name}_s", own if self.per_channel else own[0])
        self._constant(f"{name}_z", np.zeros(own.shape if self.per_channel else (), np.int32))
        inputs = [f"{name}_q", f"{name}_s", f"{name}_z"]
        self._add("DequantizeLinear", inputs, f"{name}_d", "", **at)
        return f"{name}_d"

    def _table(self, node: Any, layer: Layer) -> None:
        """Rows of an embedding in int8 with a scale each: codes and scales are looked up, then multiplied."""
        from onnx import TensorProto

        table = self.graph.array(layer.weight)
        scales = np.maximum(weight_scales(table, 0, self.weights), TINY).astype(np.float32)
        codes, own = f"{layer.weight}_rows", f"{layer.weight}_row_s"
        self._constant(codes, np.clip(np.rint(table / scales[:, None]), -127, 127).astype(np.int8))
        self._constant(own, scales[:, None])
        [out] = node.output
        self._add("Gather", [codes, node.input[1]], f"{out}_codes", f"{node.name}", axis=0)
        self._add("Gather", [own, node.input[1]], f"{out}_row_s", f"{node.name}_s", axis=0)
        self._add("Cast", [f"{out}_codes"], f"{out}_cast", f"{node.name}_cast", to=TensorProto.FLOAT)
        self._add("Mul", [f"{out}_cast", f"{out}_row_s"], out, f"{node.name}_mul")

    def _add(self, operator: str, inputs: list[str], out: str, name: str = "", **attributes: Any) -> None:
        from onnx import helper

        self._made.append(helper.make_node(operator, inputs, [out], name=name, **attributes))

    def _constant(self, name: str, value: np.ndarray | np.generic) -> None:
        from onnx import numpy_helper

        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.asarray(value), name)


def fit_bias(scales: np.ndarray, bias: np.ndarray | None, scale: float) -> np.ndarray:
    """Weight scales, float32, widened where the bias would not fit 32 bits at `scale` * weight scale.

    A channel of zeros, which has scale 0, gets the one that its bias needs.
    """
    need = np.zeros(len(scales))
    if bias is not None:
        magnitude = np.abs(bias.astype(np.float64))
        need = (magnitude if len(scales) > 1 or len(magnitude) == 1 else magnitude.max(keepdims=True)) / scale / LIMIT
    fitted = np.maximum(scales, need)
    return np.maximum(np.where(fitted > 0, fitted, 1.0), TINY).astype(np.float32)
