"""Dynamic quantization: weights in int8, activations measured and quantized while the file runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from decoct.quantization.base import Feeds, Judge, Quantization, Quantized
from decoct.quantization.editing import MICROSOFT, Editing, Product, nothing_found, with_small_tables
from decoct.quantization.weights import by_channel, sqnr
from decoct.training.compression import Change

if TYPE_CHECKING:
    import onnx

LSTM_OPTIONS = ("hidden_size", "direction", "activations", "activation_alpha", "activation_beta", "clip")


class Dynamic(Quantization):
    """Weights in int8, activations quantized at run time by their own range; for transformers and recurrent nets.

    Products by constants run as MatMulInteger (activations uint8), LSTM layers as ONNX Runtime's DynamicQuantizeLSTM;
    a GRU has no such kernel, and convolutions are left to `static`. `per_channel`: a scale for each output;
    `embeddings`: tables in int8 too, a scale for each row; `reduce_range`: 7 bits for weights, where a processor
    without VNNI would overflow. Needs no calibration.
    """

    use: ClassVar[str] = "dynamic"
    per_channel: bool = True
    embeddings: bool = True
    reduce_range: bool = False

    def quantize(self, graph: onnx.ModelProto, feeds: Feeds | None, judge: Judge | None) -> Quantized:
        editing = Editing(graph, self.protect)
        changes: list[Change] = []
        noise: dict[str, float] = {}
        shared: dict[str, list[str]] = {}
        for product in list(editing.products()):
            if editing.keeps(product.node):
                changes.append(Change(product.path, "bits", 32, 32, "protected"))
                continue
            noise[product.path] = self._product(editing, product, shared)
            changes.append(Change(product.path, "bits", 32, 8))
        recurrent, has_lstm = self._recurrent(editing, noise)
        changes += recurrent
        if self.embeddings:
            for path, found in with_small_tables(editing):
                noise[path] = found
                changes.append(Change(path, "bits", 32, 8, "table, a scale for each row"))
        if not any(each.after == 8 for each in changes):
            raise nothing_found(self.use, "product by a constant and no LSTM", "use static for convolutions")
        changes += [
            Change(editing.path(node), "bits", 32, 32, "dynamic quantization leaves convolutions in float; use static")
            for node in editing.nodes("Conv")
        ]
        return Quantized(editing.finish(microsoft=has_lstm), tuple(changes), {"weights_sqnr_db": noise})

    def _limit(self) -> int:
        return 63 if self.reduce_range else 127

    def _product(self, editing: Editing, product: Product, shared: dict[str, list[str]]) -> float:
        """Puts the integer form in place of a product; the SQNR of its weights."""
        from onnx import TensorProto

        node, taken = product.node, product.node.input[0]
        values, scales = by_channel(product.weights, 1 if self.per_channel else None, self._limit())
        stem = node.input[1]
        weights = editing.constant(f"{stem}_int8", values)
        scale = editing.constant(f"{stem}_scale", scales.reshape(-1) if self.per_channel else scales.reshape(()))
        if taken not in shared:
            shared[taken] = editing.put(node, "DynamicQuantizeLinear", [taken], outputs=3)
        q, q_scale, q_zero = shared[taken]
        zero = editing.constant(f"{stem}_zero", np.zeros((), np.int8))
        (whole,) = editing.put(node, "MatMulInteger", [q, weights, q_zero, zero])
        (floats,) = editing.put(node, "Cast", [whole], to=TensorProto.FLOAT)
        (both,) = editing.put(node, "Mul", [q_scale, scale])
        if product.bias is None:
            editing.put(node, "Mul", [floats, both], node.output[0])
        else:
            (scaled,) = editing.put(node, "Mul", [floats, both])
            editing.put(node, "Add", [scaled, product.bias], node.output[0])
        editing.remove(node)
        return sqnr(product.weights, values * scales)

    def _recurrent(self, editing: Editing, noise: dict[str, float]) -> tuple[list[Change], bool]:
        changes = []
        for node in editing.nodes("LSTM", "GRU"):
            path = editing.path(node)
            why = _unfit(editing, node)
            if why:
                changes.append(Change(path, "bits", 32, 32, why))
                continue
            noise[path] = self._lstm(editing, node)
            changes.append(Change(path, "bits", 32, 8))
        return changes, any(each.after == 8 for each in changes)

    def _lstm(self, editing: Editing, node: Any) -> float:
        inputs = list(node.input) + [""] * (8 - len(node.input))
        extra, worst = [], 999.0
        for place in (1, 2):
            exact = editing.value(inputs[place]).transpose(0, 2, 1)  # [directions, inputs, 4 * hidden]
            parts = [by_channel(each, 1 if self.per_channel else None, self._limit()) for each in exact]
            values = np.stack([each[0] for each in parts])
            scales = np.stack([each[1].reshape(-1) if self.per_channel else each[1].reshape(()) for each in parts])
            worst = min(worst, sqnr(exact, values * scales.reshape(len(exact), 1, -1)))
            stem = inputs[place]
            inputs[place] = editing.constant(f"{stem}_int8", values)
            extra.append(editing.constant(f"{stem}_scale", scales))
            extra.append(editing.constant(f"{stem}_zero", np.zeros(scales.shape, np.int8)))
        options = [each for each in node.attribute if each.name in LSTM_OPTIONS]
        node.op_type, node.domain = "DynamicQuantizeLSTM", MICROSOFT
        del node.input[:]
        node.input.extend([*inputs, *extra])
        del node.attribute[:]
        node.attribute.extend(options)
        return worst


def _unfit(editing: Editing, node: Any) -> str:
    """Why a recurrent node stays in float; empty where it need not."""
    if node.op_type == "GRU":
        return "ONNX Runtime has no integer kernel for GRU"
    if editing.keeps(node):
        return "protected"
    if not all(editing.is_float(each) for each in node.input[1:3]):
        return "its weights are computed"
    if any(each.name == "layout" and each.i for each in node.attribute):
        return "its batch comes first"
    return ""
