"""ONNX, the format that most runtimes read."""

from __future__ import annotations

import contextlib
import copy
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from decoct.artifact import write_whole
from decoct.errors import RecipeError
from decoct.models.interface import MAIN, Program
from decoct.models.onnx_file import FileSession, open_session, unshare
from decoct.targets.base import Target
from decoct.targets.lowering import with_onnx_forms
from decoct.targets.recurrent import with_onnx_recurrence

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import Tensor, nn

FILE = f"{MAIN}.onnx"
LARGEST = 2**31 - 1
"""Bytes that one ONNX file without external data can hold."""


class Onnx(Target):
    """An ONNX file in float, with the preprocessing inside.

    `opset`: the version of the standard operators. The same weights give the same bytes; the file holds no path of
    the machine that wrote it.
    """

    use: ClassVar[str] = "onnx"
    opset: int = Field(default=20, ge=18, le=23)

    def write(self, programs: Mapping[str, Program], folder: Path) -> dict[str, Path]:
        return {name: save(graph(each, opset=self.opset), folder / f"{name}.onnx") for name, each in programs.items()}

    def load(self, path: Path, *, threads: int = 1) -> FileSession:
        return open_session(path, threads=threads)

    @property
    def runtime(self) -> str:
        return "onnxruntime"


def graph(program: Program, *, opset: int) -> onnx.ModelProto:
    """The ONNX graph of a program, from a copy in eval mode; RecipeError names the operator and the module."""
    import torch

    axes = program.axes
    module = with_onnx_recurrence(with_onnx_forms(copy.deepcopy(program.module).eval()))
    example = {name: of_two(value, axes.get(name, {})) for name, value in program.example.items()}
    with quiet(), torch.no_grad():
        exported = trace(module, example, axes)
        proto = _convert(exported, example, list(program.outputs), opset)
    found = [each.name for each in proto.graph.input]
    if sorted(found) != sorted(example):
        raise RecipeError(f"ONNX: the program takes {', '.join(example)}, its graph takes {', '.join(found)}")
    _name_axes(proto, axes)
    _strip(proto)
    return proto


def save(proto: onnx.ModelProto, path: Path) -> Path:
    """Checks a graph and writes it, whole or not at all."""
    import onnx

    unshare(proto, weights=False)  # the exporter merges equal zero points, which sessions with exact sums cannot take
    size = proto.ByteSize()
    if size > LARGEST:
        raise RecipeError(
            f"ONNX: the model takes {size} bytes, one file holds at most {LARGEST}; export a smaller model"
        )
    onnx.checker.check_model(proto, full_check=True)
    write_whole(path, proto.SerializeToString(deterministic=True))
    return path


def of_two(value: Tensor, axes: Mapping[int, str]) -> Tensor:
    """The same tensor with two of what it has one of along a dynamic axis: tracing fixes an axis of size 1."""
    for axis in axes:
        if value.shape[axis] == 1:
            value = value.repeat_interleave(2, dim=axis)
    return value


def trace(
    program: nn.Module,
    example: Mapping[str, Tensor],
    axes: Mapping[str, Mapping[int, str]],
    *,
    form: str = "ONNX",
) -> torch.export.ExportedProgram:
    """The program as torch.export sees it; RecipeError names the module that cannot be traced."""
    import torch

    from decoct.models.modes import as_in_training

    shapes = {name: dict.fromkeys(axes.get(name, {}), torch.export.Dim.DYNAMIC) for name in example}
    try:
        with as_in_training():
            return torch.export.export(program, (), kwargs=dict(example), dynamic_shapes=shapes, strict=False)
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError) as error:
        where = _failing_module(program, error.__traceback__)
        raise RecipeError(
            f"{form}: {where or type(program).__name__} cannot be traced: {_summary(error)}; "
            "its forward may not branch on values of tensors or fix an axis that is dynamic"
        ) from error


def _convert(
    exported: torch.export.ExportedProgram, example: Mapping[str, Tensor], outputs: list[str], opset: int
) -> onnx.ModelProto:
    import torch

    exported._guards_code = []  # what torch checks of inputs; with **kwargs its code has names that are not defined
    packed = any(value.dtype == torch.uint8 for value in exported.state_dict.values())
    try:
        program = torch.onnx.export(
            exported,
            (),
            kwargs=dict(example),
            dynamo=True,
            external_data=False,
            verbose=False,
            output_names=outputs,
            opset_version=opset,
            optimize=not packed,
        )
    except torch.onnx.OnnxExporterError as error:
        raise RecipeError(_conversion_message(exported, str(error), opset)) from error
    assert program is not None
    if packed:
        _fold_but_packed(program.model)
    places = [value.data_ptr() for value in exported.state_dict.values() if value.numel()]
    if len(set(places)) < len(places):
        _store_once(program.model)
    return program.model_proto


def _store_once(model: Any) -> None:
    """Joins equal weights: where layers share one, the exporter may have folded it once for each of them."""
    from onnx_ir.passes.common import CommonSubexpressionEliminationPass, DeduplicateInitializersPass

    DeduplicateInitializersPass(size_limit=LARGEST)(model)
    CommonSubexpressionEliminationPass()(model)


def _fold_but_packed(model: Any) -> None:
    """The exporter's own simplification, which would write small packed weights out as floats; bytes stay bytes."""
    import onnx_ir
    from onnxscript.optimizer import optimize_ir

    def fold(node: Any) -> bool | None:
        stored = [value for value in node.inputs if value is not None and value.const_value is not None]
        return False if any(value.dtype == onnx_ir.DataType.UINT8 for value in stored) else None

    optimize_ir(model, should_fold=fold)


def _conversion_message(exported: torch.export.ExportedProgram, text: str, opset: int) -> str:
    match = re.search(r"target=torch\.ops\.(\w+)\.(\w+)", text) or re.search(r"op='(\w+)\.(\w+)'", text)
    if match is None:
        return f"ONNX: the program cannot be converted at opset {opset}: {text.strip().splitlines()[-1][:300]}"
    operator = f"{match[1]}::{match[2]}"
    path = next((_module_of(node) for node in exported.graph.nodes if match[2] in str(node.target)), None)
    where = f" in module {path!r}" if path else ""
    return (
        f"ONNX has no form of operator {operator}{where} at opset {opset}; "
        "replace it in the model, or try a higher `opset`"
    )


def _module_of(node: torch.fx.Node) -> str | None:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0] if stack else None


def _failing_module(program: nn.Module, trace: TracebackType | None) -> str | None:
    """The innermost module whose code was running when the error was raised."""
    names = {id(module): name for name, module in program.named_modules()}
    found = None
    while trace is not None:
        module = trace.tb_frame.f_locals.get("self")
        if names.get(id(module)):
            found = f"{names[id(module)]!r} ({type(module).__name__})"
        trace = trace.tb_next
    return f"module {found}" if found else None


def _summary(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    detail = next((line for line in lines if line.startswith("- ")), lines[0] if lines else type(error).__name__)
    return detail.removeprefix("- ")[:300].rstrip(".")


def _name_axes(proto: onnx.ModelProto, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Gives the dynamic axes their names, in place of the tracer's symbols."""
    names: dict[str, str] = {}
    for value in proto.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if axis in axes.get(value.name, {}) and dim.dim_param:
                names[dim.dim_param] = axes[value.name][axis]
    for value in [*proto.graph.input, *proto.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, dim.dim_param)


def _strip(proto: onnx.ModelProto) -> None:
    """Removes comments, which hold source paths, and the shapes in between, which readers infer."""
    del proto.metadata_props[:]
    proto.doc_string = ""
    _strip_graph(proto.graph)
    for function in proto.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        _strip_nodes(function.node)


def _strip_graph(each: Any) -> None:
    each.doc_string = ""
    del each.metadata_props[:]
    del each.value_info[:]
    for value in [*each.input, *each.output, *each.initializer]:
        value.doc_string = ""
        del value.metadata_props[:]
    _strip_nodes(each.node)


def _strip_nodes(nodes: Any) -> None:
    for node in nodes:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.doc_string = ""
            for inner in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                _strip_graph(inner)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the exporter's warnings and log lines while the body runs."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
