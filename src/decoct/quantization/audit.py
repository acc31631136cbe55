"""Audit: which convolutions, matrix products and recurrent layers of a file really run in integer kernels."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from decoct.models.onnx_file import exact_options, exactly
from decoct.quantization._graph import Graph, attribute
from decoct.training.compression import Change

INTEGER = (
    "QLinearConv",
    "QLinearMatMul",
    "QGemm",
    "ConvInteger",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
    "QAttention",
)
WEIGHTS = ("MatMulNBits", "MatMulBnb4")
FLOAT = (
    "Conv",
    "FusedConv",
    "NhwcFusedConv",
    "ConvTranspose",
    "MatMul",
    "FusedMatMul",
    "Gemm",
    "FusedGemm",
    "Einsum",
    "LSTM",
    "GRU",
    "RNN",
    "Attention",
    "MultiHeadAttention",
)
ACTIVATIONS = (
    "HardSwish",
    "HardSigmoid",
    "QuickGelu",
    "Gelu",
    "Erf",
    "Tanh",
    "Elu",
    "Softplus",
    "Mish",
    "Swish",
    "Clip",
)
RECTIFIERS = ("Relu", "Clip")
PRODUCTS = (*INTEGER, *WEIGHTS, *FLOAT)
TAKEN_IN = ("Relu", "LeakyRelu", "Sigmoid", "Add", "Mul", "Cast", "QuantizeLinear", "DequantizeLinear")
"""Operators that the runtime may compute in one kernel with the product before them."""
SUFFIX = re.compile(r"(_token_\d+|_nchwc|_quant|_fused|_bn)+$")


@dataclass(frozen=True)
class Kernel:
    """One layer as the runtime runs it: `runs` int8, weights (codes that are turned into floats) or float; `cause` why
    it does not compute in integers."""

    layer: str
    operator: str
    runs: str
    cause: str = ""


@dataclass(frozen=True)
class Audit:
    """The layers of a file after the runtime's optimisation; `between` counts the activations in float between them."""

    layers: tuple[Kernel, ...]
    between: Mapping[str, int]
    runtime: str

    def count(self, runs: str) -> int:
        """How many layers run so."""
        return sum(each.runs == runs for each in self.layers)

    def data(self) -> dict[str, Any]:
        """As it stands in exported.json."""
        counts = {runs: self.count(runs) for runs in ("int8", "weights", "float")}
        layers = [asdict(each) for each in self.layers]
        return {**counts, "between": dict(self.between), "layers": layers, "runtime": self.runtime}

    def warning(self) -> str:
        """What a user should know; empty where every layer runs in integers and no activation stands between."""
        sentences = []
        left = [each for each in self.layers if each.runs == "float"]
        if left:
            named = "; ".join(f"{each.layer} ({each.operator}): {each.cause}" for each in left[:5])
            more = f"; and {len(left) - 5} more" if len(left) > 5 else ""
            sentences.append(f"{len(left)} of {len(self.layers)} layers run in float: {named}{more}")
        if self.between:
            named = ", ".join(f"{count} {name}" for name, count in self.between.items())
            sentences.append(
                f"between integer layers the runtime computes {named} in float, with codes turned into floats and "
                "back each time: a student with ReLU or ReLU6 needs none of it"
            )
        return ". ".join(sentences)


def audit(path: Path, changes: Iterable[Change] = ()) -> Audit:
    """Reads which kernels ONNX Runtime chose for each layer of a file; `changes` give the scheme's own reasons."""
    import onnx
    import onnxruntime

    written = Graph(onnx.load(str(path)))
    chosen = Graph(_optimised(path))
    names = {node.name: node for node in written.nodes}
    notes = {each.path.removeprefix("model."): each.note for each in changes if each.note}
    layers = []
    for node in chosen.nodes:
        runs = _runs(node.op_type)
        if not runs:
            continue
        name = SUFFIX.sub("", node.name.removeprefix("fused ").partition("/")[0])
        source = _source(written, names.get(name), [*node.output, name])
        if source is not None and source.op_type == "BatchNormalization":
            continue  # which the runtime may compute as a convolution of each channel
        module = name if source is None else _module(written, source)
        cause = ""
        if runs == "float" and source is not None and _stored(written, source):
            runs = "weights"
        if runs == "weights":
            cause = f"weights in {_stored(written, source) or 'int4'}, arithmetic in float by design"
        elif runs != "int8":
            cause = notes.get(module) or _cause(written, source) or "the runtime chose the float kernel"
        layers.append(Kernel(module, node.op_type, runs, cause))
    return Audit(tuple(layers), _between(chosen), f"onnxruntime {onnxruntime.__version__}")


def _source(graph: Graph, named: Any | None, outputs: Iterable[str]) -> Any | None:
    """The product of the written graph that a kernel computes: the one of its name, else the one behind its outputs,
    from which the runtime may have taken in an activation, a bias or a quantizer."""
    if named is not None and named.op_type in PRODUCTS:
        return named
    for name in outputs:
        node = graph.maker.get(SUFFIX.sub("", name), named)
        while node is not None and node.op_type in (*TAKEN_IN, *ACTIVATIONS):
            made = [graph.maker[each] for each in node.input if each in graph.maker]
            node = next((each for each in made if each.op_type in (*PRODUCTS, *TAKEN_IN, *ACTIVATIONS)), None)
        if node is not None:
            return node
    return named


def _module(graph: Graph, node: Any) -> str:
    """The module of a product, by the names of its weights, else by the bias that is added to what it gives."""
    known = graph.module(node)
    after: Any | None = node
    while known == node.name and after is not None and after.output:
        after = graph.alone(after.output[0])
        if after is None or after.op_type not in ("Cast", "Mul", "Add"):
            break
        if after.op_type == "Add":
            added = graph.module(after)
            return added if added != after.name else known
    return known


def _stored(graph: Graph, node: Any) -> str:
    """In which integers the weights of a product in float are stored; empty where they are in float.

    They are turned into floats in the graph, and what they are multiplied with is no integer.
    """
    from onnx import TensorProto

    codes = {TensorProto.INT8: "int8", TensorProto.UINT8: "int8", TensorProto.INT4: "int4", TensorProto.UINT4: "int4"}
    if node.op_type in WEIGHTS:
        return f"int{attribute(node, 'bits', 4)}"
    if node.op_type not in FLOAT or len(node.input) < 2:
        return ""
    taken, weights = (graph.maker.get(name) for name in node.input[:2])
    if weights is None or (taken is not None and taken.op_type == "DequantizeLinear"):
        return ""
    if weights.op_type not in ("Cast", "DequantizeLinear") or weights.input[0] not in graph.constants:
        return ""
    return codes.get(graph.constants[weights.input[0]].data_type, "")


def _optimised(path: Path) -> Any:
    """The graph that the runtime makes of a file for this machine's CPU."""
    import onnx
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "optimised.onnx"
        options = exact_options()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(out)
        exactly(path, lambda source: onnxruntime.InferenceSession(source, options, ["CPUExecutionProvider"]))
        return onnx.load(str(out))


def _runs(operator: str) -> str:
    if operator in INTEGER:
        return "int8"
    if operator in WEIGHTS:
        return "weights"
    return "float" if operator in FLOAT else ""


def _cause(graph: Graph, node: Any | None) -> str:
    """Why the runtime finds no integer kernel for a node of the written graph; empty where it is not seen."""
    if node is None:
        return ""
    if node.op_type in ("LSTM", "GRU", "RNN", "ConvTranspose", "Einsum"):
        return f"the runtime has no int8 kernel for {node.op_type} with quantizers around it"
    inputs = [graph.maker.get(name) for name in node.input[:2]]
    quantized = [each is not None and each.op_type == "DequantizeLinear" for each in inputs]
    if quantized == [False, True]:
        return "only its weights are integers"
    dynamic = any(each.op_type == "DynamicQuantizeLinear" for each in graph.nodes)
    if node.op_type == "Conv" and dynamic and node.input[1] in graph.constants:
        return "dynamic quantization leaves convolutions in float; use static"
    if not any(quantized):
        weight = len(node.input) > 1 and node.input[1] in graph.constants
        return "its weights and its input are in float" if weight else "both factors are activations in float"
    if quantized == [True, False]:
        return "its weights are in float"
    if _signed(graph, inputs[0]):
        return "its activations are signed"
    readers = [each.op_type for each in graph.readers.get(node.output[0], [])]
    if node.op_type == "Conv" and readers != ["QuantizeLinear"]:
        after = graph.readers[node.output[0]] if readers else []
        if len(after) == 1 and after[0].op_type in RECTIFIERS:
            return f"{after[0].op_type} stands before its quantizer and was not taken in: its range does not fit"
        return f"its output goes to {', '.join(sorted(set(readers))) or 'the output'} in float"
    return ""


def _signed(graph: Graph, dequantizer: Any) -> bool:
    from onnx import TensorProto

    zero = dequantizer.input[2] if len(dequantizer.input) > 2 else ""
    return zero in graph.constants and graph.constants[zero].data_type == TensorProto.INT8


def _whole(graph: Graph, node: Any) -> str:
    """The name of an activation; HardSwish where x * HardSigmoid(x) is written out."""
    after = graph.alone(node.output[0])
    if node.op_type == "HardSigmoid" and after is not None and after.op_type == "Mul":
        before = {_stored_codes(graph, name) for name in after.input if name != node.output[0]}
        if before == {_stored_codes(graph, node.input[0])}:
            return "HardSwish"
    return str(node.op_type)


def _stored_codes(graph: Graph, name: str) -> str:
    """The codes that a tensor is made from by a dequantizer; else the tensor itself."""
    maker = graph.maker.get(name)
    return str(maker.input[0]) if maker is not None and maker.op_type == "DequantizeLinear" else name


def _between(graph: Graph) -> dict[str, int]:
    """Activations that read what was dequantized and lead to a quantizer again."""
    found: Counter[str] = Counter()
    for node in graph.nodes:
        if node.op_type not in ACTIVATIONS:
            continue
        made = [graph.maker.get(name) for name in node.input if name]
        if any(each is not None and each.op_type in ("DequantizeLinear", *INTEGER) for each in made):
            found[_whole(graph, node)] += 1
    return dict(found)
