"""OpenVINO, Intel's runtime: a graph in .xml with its weights in .bin."""

from __future__ import annotations

import importlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from decoct.artifact import filled_by, no_space
from decoct.errors import IntegrityError, RecipeError, ResourceError
from decoct.models.interface import MAIN, Program
from decoct.targets.base import Session, Target
from decoct.targets.onnx import graph, save

if TYPE_CHECKING:
    import onnx

FILE = "model.xml"
TELEMETRY = "openvino_telemetry"


class OpenVINO(Target):
    """An OpenVINO graph (.xml and .bin), written from the ONNX graph, with the preprocessing inside.

    `opset` of the ONNX graph on the way; `precision`: f32 computes in float; auto leaves it to OpenVINO, which takes
    bfloat16 without saying so where the processor has it. OpenVINO's telemetry is switched off.
    Needs `pip install 'decoct[edge]'`.
    """

    use: ClassVar[str] = "openvino"
    opset: int = Field(default=20, ge=18, le=23)
    precision: Literal["f32", "auto"] = "f32"

    def write(self, programs: Mapping[str, Program], folder: Path) -> dict[str, Path]:
        library()
        return {name: convert(graph(each, opset=self.opset), folder, name) for name, each in programs.items()}

    def load(self, path: Path, *, threads: int = 1) -> Session:
        if not path.is_file():
            raise IntegrityError(f"{path} is missing; make the artifact again (decoct run does that)")
        core = library().Core()
        settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        if self.precision == "f32":
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        try:
            compiled = core.compile_model(core.read_model(str(path)), "CPU", settings)
        except RuntimeError as error:
            raise IntegrityError(f"{path} is no OpenVINO graph that can be run: {_last_line(error)}") from None
        return OpenVINOSession(compiled)

    def files(self, path: Path) -> tuple[Path, ...]:
        return (path, path.with_suffix(".bin"))

    @property
    def runtime(self) -> str:
        return "openvino"


class OpenVINOSession:
    """A compiled graph: arrays by input name in, arrays by output name out."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._outputs = [each.any_name for each in compiled.outputs]

    def __call__(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = self._request.infer(dict(feed))
        return {name: np.array(outputs[name]) for name in self._outputs}


def convert(proto: onnx.ModelProto, folder: Path, name: str = MAIN) -> Path:
    """An ONNX graph as NAME.xml and NAME.bin in `folder`; RecipeError names what OpenVINO cannot take."""
    openvino = library()
    with tempfile.TemporaryDirectory() as place:
        path = save(proto, Path(place) / "model.onnx")
        try:
            model = openvino.Core().read_model(str(path))
        except RuntimeError as error:
            raise RecipeError(f"OpenVINO cannot take this graph: {_last_line(error)}; export to onnx instead") from None
        made = Path(place) / f"{name}.xml"
        try:
            openvino.save_model(model, str(made), compress_to_fp16=False)
        except RuntimeError as error:
            if not filled_by(error, Path(place)):
                raise
            raise no_space(made, proto.ByteSize()) from error
        for each in (made, made.with_suffix(".bin")):
            shutil.copyfile(each, folder / each.name)
    return folder / made.name


def library() -> ModuleType:
    """The package openvino, imported without its telemetry; ResourceError says how to install it."""
    with _without_telemetry():
        try:
            return importlib.import_module("openvino")
        except ImportError as error:
            raise ResourceError(f"openvino cannot be imported ({error}); pip install 'decoct[edge]'") from None


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """While the body runs, the package that sends usage data cannot be imported: openvino then takes its own stub."""
    before = sys.modules.get(TELEMETRY)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is None:
            del sys.modules[TELEMETRY]
        else:
            sys.modules[TELEMETRY] = before


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
