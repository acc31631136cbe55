"""Target, the Spec of a format to ship in."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decoct.models.interface import Program
from decoct.spec import Spec

if TYPE_CHECKING:
    import numpy as np

Session = Callable[["Mapping[str, np.ndarray]"], "dict[str, np.ndarray]"]
"""A loaded file: inputs by name -> outputs by name."""


class Target(Spec):
    """A format; a program is preprocessing ∘ model ∘ postprocessing with plain tensors in and out."""

    @abstractmethod
    def write(self, programs: Mapping[str, Program], folder: Path) -> dict[str, Path]:
        """Exports programs (eval mode, each its own copy) into `folder`; returns the file of each, by name.

        RecipeError names the operator and module that the format cannot take.
        """

    @abstractmethod
    def load(self, path: Path, *, threads: int = 1) -> Session:
        """The file, ready to run."""

    def files(self, path: Path) -> tuple[Path, ...]:
        """The file and those that belong to it; all of them ship."""
        return (path,)

    @property
    @abstractmethod
    def runtime(self) -> str:
        """What runs the file, as results name it: "onnxruntime"."""


Facts = dict[str, Any]
