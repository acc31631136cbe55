"""Weight-only quantization: weights stored in 8 or 4 bits, everything computed in float."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import model_validator

from decoct.quantization.base import Feeds, Judge, Quantization, Quantized
from decoct.quantization.editing import MICROSOFT, Editing, Product, nothing_found, with_small_tables
from decoct.quantization.weights import by_channel, grouped, packed, sqnr
from decoct.training.compression import Change

if TYPE_CHECKING:
    import onnx

BLOCKED_SINCE = 21
"""The first opset whose DequantizeLinear knows blocks and 4 bits."""


class WeightOnly(Quantization):
    """Weights of products in int8 by channel or in 4 bits by group, for language models; activations stay in float.

    `bits` 8: a scale for each output; 4: groups of `block_size` inputs, each with a scale, and a zero point unless
    `symmetric`. `form` of 4 bits: matmul_nbits, ONNX Runtime's own operator; dequantize, the standard operator of
    opset 21, for which ONNX Runtime may round activations to 8 bits. `embeddings`: tables in int8, a scale for each
    row. Files are smaller; faster only where reading the weights is what takes the time. Needs no calibration.
    """

    use: ClassVar[str] = "weight_only"
    bits: Literal[4, 8] = 8
    block_size: Literal[32, 64, 128] = 32
    symmetric: bool = False
    form: Literal["matmul_nbits", "dequantize"] = "matmul_nbits"
    embeddings: bool = True

    @model_validator(mode="after")
    def _eight_bits_are_symmetric(self) -> WeightOnly:
        named = {"block_size", "symmetric", "form"} & self.model_fields_set
        changed = sorted(each for each in named if getattr(self, each) != type(self).model_fields[each].default)
        if self.bits == 8 and changed:
            raise ValueError(f"{' and '.join(changed)} belong to bits: 4; with 8 bits each output has one scale")
        return self

    def quantize(self, graph: onnx.ModelProto, feeds: Feeds | None, judge: Judge | None) -> Quantized:
        editing = Editing(graph, self.protect)
        changes: list[Change] = []
        noise: dict[str, float] = {}
        for product in list(editing.products()):
            if editing.keeps(product.node):
                changes.append(Change(product.path, "bits", 32, 32, "protected"))
                continue
            noise[product.path] = self._product(editing, product)
            changes.append(Change(product.path, "bits", 32, self.bits))
        if self.embeddings:
            for path, found in with_small_tables(editing):
                noise[path] = found
                changes.append(Change(path, "bits", 32, 8, "table, a scale for each row"))
        if not any(each.after < 32 for each in changes):
            raise nothing_found(self.use, "product by a constant", "use static for convolutions")
        blocked = self.bits == 4 and self.form == "dequantize"
        packs = self.bits == 4 and not blocked
        opset = BLOCKED_SINCE if blocked else 0
        return Quantized(editing.finish(microsoft=packs, opset=opset), tuple(changes), {"weights_sqnr_db": noise})

    def _product(self, editing: Editing, product: Product) -> float:
        if self.bits == 8:
            return _eight(editing, product)
        return self._nbits(editing, product) if self.form == "matmul_nbits" else self._blocked(editing, product)

    def _nbits(self, editing: Editing, product: Product) -> float:
        """MatMulNBits: values `[N, groups, block / 2]`, scales `[N * groups]`, zero points of 4 bits by row."""
        node, stem = product.node, product.node.input[1]
        exact = product.weights.T
        found = grouped(exact, self.block_size, 4, symmetric=self.symmetric)
        inputs = [
            node.input[0],
            editing.constant(f"{stem}_int4", packed(found.values)),
            editing.constant(f"{stem}_scale", found.scales.reshape(-1)),
        ]
        if not self.symmetric:
            inputs.append(editing.constant(f"{stem}_zero", packed(found.zeros).reshape(-1)))
        size = {"K": exact.shape[1], "N": exact.shape[0], "bits": 4, "block_size": self.block_size}
        output = None if product.bias else node.output[0]
        (made,) = editing.put(node, "MatMulNBits", inputs, output, domain=MICROSOFT, **size)
        _end(editing, product, made)
        return sqnr(exact, found.floats())

    def _blocked(self, editing: Editing, product: Product) -> float:
        """DequantizeLinear over blocks of the inputs' axis, then the product; `[K, N]`, K divisible by the block."""
        from onnx import TensorProto, helper

        stem, weights = product.node.input[1], product.weights
        length = weights.shape[0]
        block = self.block_size if length % self.block_size == 0 else length
        found = grouped(weights.T, block, 4, symmetric=self.symmetric)
        values = found.values.reshape(len(found.values), -1).T  # [K, N]
        names = []
        for suffix, each in (("int4", values), ("zero", found.zeros.T)):
            tensor = helper.make_tensor(
                editing.name(f"{stem}_{suffix}"),
                TensorProto.UINT4,
                each.shape,
                packed(np.ascontiguousarray(each).reshape(-1)).tobytes(),
                raw=True,
            )
            names.append(editing.add(tensor))
        scale = editing.constant(f"{stem}_scale", found.scales.T)
        (floats,) = editing.put(product.node, "DequantizeLinear", [names[0], scale, names[1]], axis=0, block_size=block)
        _multiply(editing, product, floats)
        return sqnr(weights.T, found.floats())


def _eight(editing: Editing, product: Product) -> float:
    """The product by int8 values as floats, then the scale of each output: exact for any activations.

    A DequantizeLinear here would be fused by ONNX Runtime into an operator that rounds the activations too.
    """
    from onnx import TensorProto

    node, stem = product.node, product.node.input[1]
    values, scales = by_channel(product.weights, 1)
    (floats,) = editing.put(node, "Cast", [editing.constant(f"{stem}_int8", values)], to=TensorProto.FLOAT)
    (whole,) = editing.put(node, "MatMul", [node.input[0], floats])
    output = None if product.bias else node.output[0]
    (made,) = editing.put(node, "Mul", [whole, editing.constant(f"{stem}_scale", scales.reshape(-1))], output)
    _end(editing, product, made)
    return sqnr(product.weights, values * scales)


def _multiply(editing: Editing, product: Product, weights: str) -> None:
    output = None if product.bias else product.node.output[0]
    (made,) = editing.put(product.node, "MatMul", [product.node.input[0], weights], output)
    _end(editing, product, made)


def _end(editing: Editing, product: Product, made: str) -> None:
    """Adds what a Gemm adds, and takes the old node out."""
    if product.bias:
        editing.put(product.node, "Add", [made, product.bias], product.node.output[0])
    editing.remove(product.node)
