"""Saved: a model that an earlier run left as an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from decoct.artifact import MANIFEST, Artifact
from decoct.errors import IntegrityError, RecipeError
from decoct.models.base import Interface, KeptModel

if TYPE_CHECKING:
    from torch import nn


class Saved(KeptModel):
    """The artifact in a folder that an earlier run made: a model, an estimator or an exported file.

    `path`: the artifact's folder, such as runs/digits/01-teacher. As a student it is trained further; as a teacher it
    answers as it is.
    """

    use: ClassVar[str] = "artifact"
    positional: ClassVar[tuple[str, ...]] = ("path",)
    path: Path

    def open(self) -> Artifact:
        """The artifact, checked; RecipeError where there is none."""
        return open_folder(self.path)

    def build(self, interface: Interface, *, pretrained: bool = True) -> nn.Module:
        raise AssertionError("an artifact is opened, not built")


def open_folder(path: Path) -> Artifact:
    """The artifact in a folder that a setting `path` names, checked; RecipeError where there is none."""
    try:
        return Artifact.load(path)
    except IntegrityError as error:
        if path.is_dir() and (path / MANIFEST).is_file():
            raise
        raise RecipeError(f"path is {path}, which holds no artifact ({error}); give a step's folder") from None
