"""Candidates: artifacts opened for measuring, each by what runs it when it is deployed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from decoct.artifact import Artifact
from decoct.errors import RecipeError
from decoct.meters.macs import macs
from decoct.meters.parameters import parameters
from decoct.models.onnx_file import FileSession
from decoct.models.saving import WEIGHTS, load_model
from decoct.outputs import Batch, Needs, Outputs, Predictor
from decoct.spec import Choice
from decoct.steps.base import Context
from decoct.targets.base import Target
from decoct.targets.onnx import FILE, Onnx
from decoct.teachers.onnx import file_predictor


@dataclass(frozen=True)
class Candidate:
    """An artifact that answers: `predict` for quality, `call` for latency, and what is known of its cost."""

    artifact: Artifact
    path: Path
    runtime: str
    predict: Predictor
    feed: Callable[[Batch], dict[str, np.ndarray]]
    run: Callable[[dict[str, np.ndarray]], Any]
    parameters: int | None
    macs: int | None

    @property
    def is_file(self) -> bool:
        """Whether a runtime runs the file itself."""
        return self.runtime != "torch"

    def call(self, batch: Batch) -> Callable[[], Any]:
        """One run on this batch, its inputs made ready beforehand."""
        feed = self.feed(batch)
        return lambda: self.run(feed)


def open_candidate(artifact: Artifact, context: Context, threads: int) -> Candidate:
    """The candidate for an artifact of kind exported, estimator or model."""
    if artifact.kind == "model":
        return _module(artifact, context)
    if artifact.kind not in ("exported", "estimator"):
        raise RecipeError(
            f"benchmark.inputs: {artifact.name!r} is of kind {artifact.kind}; give a model or exported file"
        )
    target: Target = Onnx()
    if artifact.kind == "exported":
        target = Choice("decoct.targets").validate(artifact.json("exported.json")["target"])
    task, side, path = context.task, str(artifact.meta["side"]), artifact.file(FILE)
    session = target.load(path, threads=threads)
    assert isinstance(session, FileSession)
    return Candidate(
        artifact,
        path,
        target.runtime,
        file_predictor(session, task, side),
        lambda batch: task.feed(batch, side),
        session,
        artifact.meta["parameters"],
        artifact.meta.get("macs"),
    )


def _module(artifact: Artifact, context: Context) -> Candidate:
    task, side = context.task, str(artifact.meta["side"])
    model = load_model(artifact, given=context.given).eval()
    program = task.program(model, side).eval()

    def predict(batch: Batch) -> Outputs:
        with torch.no_grad():
            return task.forward(model, batch, Needs(), side)

    def run(feed: dict[str, np.ndarray]) -> Any:
        with torch.no_grad():
            return program(**{name: torch.from_numpy(value) for name, value in feed.items()})

    return Candidate(
        artifact,
        artifact.file(WEIGHTS),
        "torch",
        predict,
        lambda batch: task.feed(batch, side),
        run,
        parameters(model).total,
        macs(program, task.example(side, 1)).total,
    )
