"""Stored: a soft-label store as a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from decoct.artifact import Artifact
from decoct.errors import RecipeError
from decoct.models.base import Interface, KeptModel
from decoct.models.saved import open_folder

if TYPE_CHECKING:
    from torch import nn


class Stored(KeptModel):
    """What a teacher said about a data set, written by the step `label` (`decoct label`, `decoct.label`).

    `path`: the store's folder. `fingerprint`: the start of the SHA-256 of the teacher that it must come from, as
    `decoct label` prints it; another teacher is refused.
    """

    use: ClassVar[str] = "stored"
    positional: ClassVar[tuple[str, ...]] = ("path",)
    path: Path
    fingerprint: str | None = None

    def open(self) -> Artifact:
        """The store's artifact, every file checked; RecipeError where it is none, or another teacher's."""
        found = open_folder(self.path)
        if found.kind != "store":
            raise RecipeError(
                f"path is {self.path}, an artifact of kind {found.kind}; a store is written by step label"
            )
        theirs = found.meta["teacher"]["fingerprint"]
        if self.fingerprint is not None and not theirs.startswith(self.fingerprint):
            raise RecipeError(
                f"fingerprint is {self.fingerprint}, and {self.path} was labelled by the teacher {theirs[:16]}; label "
                "again with the teacher that is meant, or leave fingerprint out"
            )
        return found

    def build(self, interface: Interface, *, pretrained: bool = True) -> nn.Module:
        raise RecipeError(
            f"{self.path} is a soft-label store, which answers but cannot be trained; use it as a teacher"
        )
