"""File: a network whose weights lie in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from torch import nn

from decoct.artifact import sha256
from decoct.errors import DataError
from decoct.models.base import Interface, Model, OutsideModel
from decoct.models.weights import fill, read_weights, without_prefix
from decoct.spec import Choice


class File(OutsideModel):
    """A network whose weights lie in a safetensors or torch file.

    `path`: the file (`.pt`, `.pth`, `.bin`, `.ckpt` are read as plain weights by a process of their own);
    `model`: the network that they fit, strictly. The names are those of the network's `state_dict()`.
    """

    use: ClassVar[str] = "file"
    path: Path
    model: Annotated[Model, Choice("decoct.models", shorthand="decoct.models.base:shorthand")]

    def build(self, interface: Interface, *, pretrained: bool = True) -> nn.Module:
        module = self.model.build(interface, pretrained=False)
        if pretrained:
            expected = module.state_dict(keep_vars=True)
            fill(module, expected, without_prefix(read_weights(self.path), expected), str(self.path))
        return module

    def standalone(self, interface: Interface) -> Model:
        return self.model.standalone(interface) if isinstance(self.model, OutsideModel) else self.model

    def fingerprint(self) -> str:
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file of weights; check `path`")
        return sha256(self.path)
