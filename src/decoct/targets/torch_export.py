"""torch.export, PyTorch's own program file."""

from __future__ import annotations

import copy
import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from decoct.artifact import understood, write_whole
from decoct.errors import IntegrityError, RecipeError
from decoct.models.interface import Program
from decoct.targets.base import Session, Target
from decoct.targets.inspection import why_unsafe
from decoct.targets.onnx import of_two, quiet, trace

if TYPE_CHECKING:
    from torch import nn

FILE = "model.pt2"
_NO_ARCHIVE = (zipfile.BadZipFile, zlib.error, EOFError, ArithmeticError, AttributeError, LookupError)
UNREADABLE = (*_NO_ARCHIVE, RuntimeError, TypeError, ValueError)
"""What reading a damaged file may raise."""
OUTPUT = "output"
"""The text in the file that names the program's output."""


class TorchExport(Target):
    """A torch.export program (.pt2) that PyTorch runs without the model's source, with the preprocessing inside.

    The file holds a graph in JSON and raw numbers. torch would unpickle what a foreign .pt2 hides (and evaluate its
    expressions), so a file is looked through before it is opened: one that holds a pickle, calls anything but tensor
    operators or has expressions of anything but sizes is refused. Threads are those of the process.
    """

    use: ClassVar[str] = "torch_export"

    def write(self, programs: Mapping[str, Program], folder: Path) -> dict[str, Path]:
        return {name: _written(each, folder / f"{name}.pt2") for name, each in programs.items()}

    def load(self, path: Path, *, threads: int = 1) -> Session:
        import torch

        if not path.is_file():
            raise IntegrityError(f"{path} is missing; make the artifact again (decoct run does that)")
        try:
            unsafe = why_unsafe(path)
        except UNREADABLE as error:
            raise IntegrityError(f"{path} is no readable torch.export file: {error}") from None
        if unsafe:
            raise IntegrityError(f"{path} is not opened: {unsafe}; export the model again with decoct")
        extra = {OUTPUT: ""}
        with quiet(), understood(path):
            program = torch.export.load(path, extra_files=extra).module(check_guards=False)
        return ProgramSession(program, extra[OUTPUT].split("\n"))

    @property
    def runtime(self) -> str:
        return "torch_export"


class ProgramSession:
    """A loaded program: arrays by input name in, arrays by output name out."""

    def __init__(self, program: nn.Module, outputs: Sequence[str]) -> None:
        self._program, self._outputs = program, outputs

    def __call__(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import torch

        with torch.no_grad():
            outputs = self._program(**{name: torch.tensor(value) for name, value in feed.items()})
        parts = outputs if isinstance(outputs, tuple) else (outputs,)
        return {name: part.numpy() for name, part in zip(self._outputs, parts, strict=True)}


def _written(program: Program, path: Path) -> Path:
    import torch

    axes = program.axes
    refuse_recurrence(program.module, axes)
    own = copy.deepcopy(program.module).eval()
    inputs = {name: of_two(value, axes.get(name, {})) for name, value in program.example.items()}
    with quiet(), torch.no_grad():
        exported = trace(own, inputs, axes, form="torch.export")
        exported._example_inputs = None  # would be a pickle in the file
        content = io.BytesIO()  # written to a file by itself, torch would end this process on a full disk
        torch.export.save(exported, content, extra_files={OUTPUT: "\n".join(program.outputs)})
    write_whole(path, content.getvalue())
    return path


def refuse_recurrence(program: nn.Module, axes: Mapping[str, Mapping[int, str]]) -> None:
    """RecipeError for a recurrent layer over sequences of any length, which torch's tracer would write out."""
    from torch import nn

    if all(set(each) <= {0} for each in axes.values()):
        return
    for name, module in program.named_modules():
        if isinstance(module, nn.RNNBase):
            raise RecipeError(
                f"torch.export writes out module {name!r} ({type(module).__name__}) for one length of sequence only; "
                "export to onnx, or to openvino"
            )
