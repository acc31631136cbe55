"""An ONNX file as something that runs: its session, its inputs and outputs, the numbers it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from decoct.errors import IntegrityError, RecipeError


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


def open_session(path: Path, *, threads: int = 1) -> FileSession:
    """The file in ONNX Runtime, on the CPU, with `threads` threads inside an operator and one operator at a time.

    IntegrityError if the file is absent or no ONNX file; RecipeError if it needs what this runtime lacks.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    if not path.is_file():
        raise IntegrityError(f"{path} is missing; make the artifact again (decoct run does that)")
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    try:
        return FileSession(onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))
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


def _port(value: Any) -> Port:
    shape = tuple(axis if isinstance(axis, int) else str(axis or "?") for axis in value.shape)
    return Port(value.name, value.type.removeprefix("tensor(").removesuffix(")"), shape)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
