"""An ONNX file as something that runs: its session, its inputs and outputs, the numbers it holds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from decoct.artifact import sha256
from decoct.errors import IntegrityError, RecipeError

if TYPE_CHECKING:
    import onnx

# The session entry of ONNX Runtime under which int8 products do not overflow (see exact_options).
EXACT = ("session.x64quantprecision", "1")
# Where operators take a weight in int8 and its zero point.
INT8_INPUTS = {
    "DequantizeLinear": (0, 2),
    "MatMulInteger": (1, 3),
    "ConvInteger": (1, 3),
    "QLinearMatMul": (3, 5),
    "QLinearConv": (3, 5),
}


@dataclass(frozen=True)
class Port:
    """An input or output: its name, NumPy type, and shape (an int, or the name of a dynamic axis)."""

    name: str
    type: str
    shape: tuple[int | str, ...]


class FileSession:
    """A loaded ONNX file: arrays by input name in, arrays by output name out."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs = tuple(_port(each) for each in session.get_inputs())
        self.outputs = tuple(_port(each) for each in session.get_outputs())
        self._names = [port.name for port in self.outputs]

    def __call__(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self._names, self._session.run(self._names, dict(feed))))


def exact_options() -> Any:
    """Session options under which sums of int8 products are exact on every processor.

    Kernels for x64 without VNNI add two products of an unsigned and a signed byte in 16 bits, which overflows silently
    (a small ResNet fell from 34 to 15 dB of signal to noise). With this entry they take unsigned weights there, a
    little slower; elsewhere it changes nothing.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(*EXACT)
    return options


def exactly(path: Path, make: Callable[[str | bytes], Any]) -> Any:
    """`make(path)`, a session under `exact_options`; of bytes in its place where one int8 weight serves twice.

    ONNX Runtime gives such a weight the name of its unsigned form twice, and fails: in memory each use gets its own.
    """
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    try:
        return make(str(path))
    except (state.Fail, state.RuntimeException) as error:
        if "AddInitializerWithOrtValue" not in str(error):
            raise
    import onnx

    proto = onnx.load(str(path))
    unshare(proto, weights=True)
    return make(proto.SerializeToString())


def unshare(proto: onnx.ModelProto, *, weights: bool) -> None:
    """Gives each operator over int8 weights a zero point of its own, and with `weights` a weight of its own too."""
    import onnx

    int8 = {each.name: each for each in proto.graph.initializer if each.data_type == onnx.TensorProto.INT8}
    seen: set[str] = set()
    for number, node in enumerate(proto.graph.node):
        weight, zero_point = INT8_INPUTS.get(node.op_type, (None, None))
        for place in (weight if weights else None, zero_point):
            if place is None:
                continue
            name = node.input[place] if place < len(node.input) else ""
            if name in seen and name in int8:
                copied = onnx.TensorProto()
                copied.CopyFrom(int8[name])
                copied.name = node.input[place] = f"{name}_of_{number}"
                proto.graph.initializer.append(copied)
            seen.add(name)


def open_session(path: Path, *, threads: int = 1) -> FileSession:
    """The file in ONNX Runtime, on the CPU, with `threads` threads inside an operator and one operator at a time.

    IntegrityError if the file is absent or no ONNX file; RecipeError if it needs what this runtime lacks.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    if not path.is_file():
        raise IntegrityError(f"{path} is missing; make the artifact again (decoct run does that)")
    onnxruntime.disable_telemetry_events()
    options = exact_options()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    providers = ["CPUExecutionProvider"]
    try:
        return FileSession(exactly(path, lambda source: onnxruntime.InferenceSession(source, options, providers)))
    except (state.InvalidProtobuf, state.NoSuchFile, state.NoModel) as error:
        raise IntegrityError(f"{path} is no readable ONNX file: {_first_line(error)}") from None
    except (
        state.Fail,
        state.InvalidGraph,
        state.NotImplemented,
        state.InvalidArgument,
        state.RuntimeException,
    ) as error:
        raise RecipeError(
            f"{path}: ONNX Runtime {onnxruntime.__version__} cannot run it: {_first_line(error)}; "
            "export with a lower opset, or install a newer onnxruntime"
        ) from None


def opset(path: Path) -> int:
    """The version of the standard operators that a file uses."""
    import onnx

    found = onnx.load(str(path), load_external_data=False).opset_import
    return next((each.version for each in found if each.domain in ("", "ai.onnx")), 0)


def files_of(path: Path) -> list[Path]:
    """The file itself and, sorted by name, the files beside it that hold its tensors (external data).

    IntegrityError for a file that cannot be read, that is absent, or that lies outside the folder of `path`.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise IntegrityError(f"{path} is no readable ONNX file: {_first_line(error)}") from None
    names = {_location(path, tensor) for tensor in _tensors(proto) if tensor.data_location == tensor.EXTERNAL}
    home, found = path.resolve().parent, [path]
    for name in sorted(names):
        file = path.parent / name
        if not name or not file.resolve().is_relative_to(home):
            raise IntegrityError(f"{path}: its external data {name!r} lies outside its folder; put both side by side")
        if not file.is_file():
            raise IntegrityError(f"{path}: its external data {name!r} is missing; put the file back beside it")
        found.append(file)
    return found


def file_hash(path: Path) -> str:
    """SHA-256 over an ONNX file, and over its external data where it has any."""
    first, *rest = files_of(path)
    if not rest:
        return sha256(first)
    state = hashlib.sha256(sha256(first).encode())
    for each in rest:
        state.update(f"\n{each.relative_to(path.parent).as_posix()} {sha256(each)}".encode())
    return state.hexdigest()


def _location(path: Path, tensor: Any) -> str:
    return next((str(each.value) for each in tensor.external_data if each.key == "location"), "")


def _tensors(proto: Any) -> Iterator[Any]:
    """Every tensor of a model: of its graphs, the graphs inside them, and its functions."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        yield from _node_tensors(function.node)
        for attribute in function.attribute_proto:
            yield from _attribute_tensors(attribute)


def _graph_tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: Any) -> Iterator[Any]:
    yield from [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]
    for sparse in [
        *attribute.sparse_tensors,
        *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
    ]:
        yield from (sparse.values, sparse.indices)
    for graph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
        yield from _graph_tensors(graph)


def _port(value: Any) -> Port:
    shape = tuple(axis if isinstance(axis, int) else str(axis or "?") for axis in value.shape)
    return Port(value.name, value.type.removeprefix("tensor(").removesuffix(")"), shape)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
