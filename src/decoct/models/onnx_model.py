"""OnnxFile: a network that is known by its ONNX file alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from decoct.errors import DataError, RecipeError
from decoct.models.base import Interface, Model, OutsideModel
from decoct.models.onnx_file import file_hash

if TYPE_CHECKING:
    from torch import nn


class OnnxFile(OutsideModel):
    """An ONNX file that answers as a teacher; it has no layers to tap and cannot be trained.

    `path`: the file. Its input takes what the task feeds an exported file (raw pixels, ids, columns); say
    `teachers: {teacher: {use: onnx, preprocessed: true}}` in the step where it takes normalised inputs.
    """

    use: ClassVar[str] = "onnx"
    positional: ClassVar[tuple[str, ...]] = ("path",)
    path: Path

    def build(self, interface: Interface, *, pretrained: bool = True) -> nn.Module:
        raise RecipeError(f"{self.path} is an ONNX file, which answers but cannot be trained; use it as a teacher")

    def standalone(self, interface: Interface) -> Model:
        return self

    def fingerprint(self) -> str:
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such ONNX file; check `path`")
        return file_hash(self.path)
