"""`load`: a run, an artifact or an exported file as something that answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from decoct.artifact import MANIFEST, Artifact
from decoct.errors import DataError, RecipeError
from decoct.models.saved import RESULTS, student_of
from decoct.serving.predict import Asked, Refused, open_file
from decoct.steps.records import EXPORTED, Exported

if TYPE_CHECKING:
    from torch import nn

    from decoct.models.base import Network
    from decoct.tasks.base import Task


class Loaded:
    """A model that answers: `predict` photos, sentences or rows; `module` goes on training, where there is one.

    `path` is what was opened: the ONNX file, or the folder of an artifact; `manual` how it is called and what it
    answers with, as plain data.
    """

    def __init__(self, path: Path, asked: Asked, artifact: Artifact | None = None, network: Network | None = None):
        self.path, self.artifact = path, artifact
        self._asked, self._network = asked, network

    @property
    def manual(self) -> Mapping[str, Any]:
        """How it is asked, and what its answers mean."""
        return self._asked.manual

    @property
    def kind(self) -> str:
        """What it reads: image, text or tabular."""
        return self._asked.kind

    @property
    def module(self) -> nn.Module:
        """The module with its weights; RecipeError for an exported file, which has none."""
        if self._network is None:
            raise RecipeError(f"{self.path} is a file that ships and has no module; load the step that it was made of")
        return self._network.module

    @property
    def task(self) -> Task:
        """The task that it was made for; RecipeError for a lone file."""
        from decoct.tasks.base import read_task

        if self.artifact is None:
            raise RecipeError(f"{self.path} is a lone file; load the folder of its step, or of its run")
        return read_task(self.artifact)

    @property
    def header(self) -> bool:
        """Whether tables that are asked about begin with the names of their columns."""
        return self._asked.header

    def predict(self, asked: Any, *, top: int = 5) -> Any:
        """The answer to one photo (a path, bytes, an image of Pillow, an array), sentence or row; a list to a list.

        Classes: `{"class", "probability", "probabilities"}`, of which `top` are named; numbers by name, in their units;
        `{"entities"}`, `{"boxes"}` in pixels of the photo, `{"shares", "map"}` of pixels; of several heads each by its
        name. A row is a mapping by column, or its values in order; a path to a CSV file, or a DataFrame, is many.
        DataError says what cannot be answered.
        """
        try:
            return self._asked.predict(asked, top=top)
        except Refused as error:
            raise DataError(f"{self.path}: {error}") from None

    def __repr__(self) -> str:
        return f"Loaded({str(self.path)!r}, {self.manual['task']})"


def load(path: Path | str) -> Loaded:
    """A run's folder (its last student), the folder of a step, or an exported ONNX file, as something that answers.

    An exported file is run as it ships, by ONNX Runtime, and torch is not imported. DataError where nothing of the kind
    is there, RecipeError for a model that reads what only its user's program can make, IntegrityError for damage.

    >>> load("nowhere")
    Traceback (most recent call last):
    decoct.errors.DataError: nowhere is missing; give a run's folder, the folder of a step, or an exported file
    """
    place = Path(path)
    if not place.exists():
        raise DataError(f"{place} is missing; give a run's folder, the folder of a step, or an exported file")
    if place.is_file():
        return _file(place)
    if (place / MANIFEST).is_file():
        return _artifact(Artifact.load(place))
    if (place / RESULTS).is_file():
        return _artifact(Artifact.load(student_of(place)))
    raise DataError(f"{place} is no run and no artifact; a run has {RESULTS}, an artifact {MANIFEST}")


def _file(path: Path, artifact: Artifact | None = None) -> Loaded:
    try:
        return Loaded(path, open_file(path), artifact)
    except Refused as error:
        raise DataError(str(error)) from None


def _artifact(artifact: Artifact) -> Loaded:
    if artifact.kind == "exported":
        name = str(artifact.json(EXPORTED, Exported)["file"])
        if not name.endswith(".onnx"):
            raise RecipeError(f"{artifact.folder}: its file is {name}; ONNX files can be asked, or the step it is of")
        return _file(artifact.folder / name, artifact)
    if artifact.kind != "model":
        raise RecipeError(f"{artifact.folder} is of kind {artifact.kind}; give a model, an exported file, or a run")
    return _through_torch(artifact)


def _shipped_manual(artifact: Artifact) -> dict[str, Any] | None:
    """The manual of a file that was exported of this step in the same run: it knows the data too."""
    for record in sorted(artifact.folder.parent.glob(f"*/{EXPORTED}")):
        if (record.parent / MANIFEST).is_file() and (record.parent / "manual.json").is_file():
            exported = Artifact.load(record.parent)
            if exported.meta.get("source") == artifact.name and exported.meta.get("side") == artifact.meta["side"]:
                return exported.json("manual.json", dict[str, Any])
    return None


def _through_torch(artifact: Artifact) -> Loaded:
    """The program that would be exported, run in torch."""
    import torch

    from decoct.models.modes import evaluating
    from decoct.models.saving import load_model
    from decoct.tasks.base import read_task

    reading = read_task(artifact).reading(str(artifact.meta["side"]))
    manual, network = _shipped_manual(artifact) or reading.manual({}), load_model(artifact)
    program, names = reading.program(network.module), list(reading.outputs)

    def run(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad(), evaluating(program):
            found = program(**{name: torch.from_numpy(each) for name, each in feed.items()})
        return dict(zip(names, [each.numpy() for each in (found if isinstance(found, tuple) else (found,))]))

    return Loaded(artifact.folder, Asked(manual, run, reading.assets().get("tokenizer.json")), artifact, network)
