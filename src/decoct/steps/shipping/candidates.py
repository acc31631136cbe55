"""Candidates: artifacts opened for measuring, each by what runs it when it is deployed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from decoct.artifact import Artifact, described_by
from decoct.errors import RecipeError
from decoct.meters.macs import macs
from decoct.meters.parameters import parameters
from decoct.models.modes import as_in_training
from decoct.models.onnx_file import FileSession
from decoct.models.saving import WEIGHTS, load_model
from decoct.outputs import DENSE, Batch, Outputs, Predictor
from decoct.quantization.audit import audit
from decoct.steps.base import Context
from decoct.steps.learning.teachers import task_of
from decoct.steps.records import EXPORTED, SPEED, Exported, Timed
from decoct.targets.base import Session, Target
from decoct.targets.onnx import FILE, Onnx
from decoct.teachers.onnx import file_predictor

if TYPE_CHECKING:
    from decoct.tasks.base import Reading

KERNEL = ("layer", "operator", "runs", "cause")


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
    files: tuple[Path, ...] = ()
    """All that ship; of a model its weights."""

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
    target, path = target_of(artifact)
    reading = _reading(artifact, context)
    session = target.load(path, threads=threads)
    return Candidate(
        artifact,
        path,
        target.runtime,
        session_predictor(session, reading),
        reading.feed,
        session,
        artifact.meta["parameters"],
        artifact.meta.get("macs"),
        target.files(path),
    )


def _reading(artifact: Artifact, context: Context) -> Reading:
    """How it reads and answers: as the task that it was made for (one head of several, say)."""
    return task_of(artifact, context.task).reading(str(artifact.meta["side"]))


def target_of(artifact: Artifact) -> tuple[Target, Path]:
    """The format of an exported artifact or estimator, and its file."""
    if artifact.kind == "estimator":
        return Onnx(), artifact.file(FILE)
    record = artifact.json(EXPORTED, Exported)
    target = described_by("decoct.targets", record["target"], artifact.folder / EXPORTED)
    assert isinstance(target, Target)
    return target, artifact.file(record["file"])


def source_of(artifact: Artifact) -> str:
    """The step or model that an artifact was made from; empty where none is known."""
    made_from = artifact.lineage.get("model") or [{}]
    return str(artifact.meta.get("source") or made_from[0].get("step") or made_from[0].get("model") or "")


def kernels_of(candidate: Candidate) -> dict[str, Any]:
    """How many operators of a quantized file run in integers (`int8`), with integer weights alone (`weights`) and in
    `float`, and the latter two by name with the cause (`left`); empty for a file in float and for a model."""
    if candidate.artifact.kind != "exported":
        return {}
    found = candidate.artifact.json(EXPORTED, Exported).get("audit")
    if not found and candidate.runtime == Onnx().runtime and _has_quantizers(candidate.path):
        found = audit(candidate.path).data()
    if not found:
        return {}
    left = [{name: each[name] for name in KERNEL} for each in found["layers"] if each["runs"] != "int8"]
    return {**{name: found[name] for name in ("int8", "weights", "float")}, "between": found["between"], "left": left}


def speed_of(candidate: Candidate) -> dict[str, Any]:
    """How a file in integers compared with its float file where it was written; empty where it was not timed."""
    timed = (candidate.artifact.folder / SPEED).is_file()
    return {"speed": dict(candidate.artifact.json(SPEED, Timed))} if timed else {}


def _has_quantizers(path: Path) -> bool:
    import onnx

    nodes = onnx.load(str(path), load_external_data=False).graph.node
    return any(node.op_type == "DequantizeLinear" for node in nodes)


def session_predictor(session: Session, reading: Reading) -> Predictor:
    """What a loaded file says about a batch, as Outputs."""
    if isinstance(session, FileSession):
        return file_predictor(session, reading)
    return lambda batch: reading.from_file(session(reading.feed(batch)), batch)


def _module(artifact: Artifact, context: Context) -> Candidate:
    reading = _reading(artifact, context)
    network = load_model(artifact, given=context.given)
    program = reading.program(network.module).eval()

    def predict(batch: Batch) -> Outputs:
        with torch.no_grad():
            return reading.forward(network, batch, DENSE)

    def run(feed: dict[str, np.ndarray]) -> Any:
        with torch.no_grad(), as_in_training():
            return program(**{name: torch.tensor(value) for name, value in feed.items()})

    return Candidate(
        artifact,
        artifact.file(WEIGHTS),
        "torch",
        predict,
        reading.feed,
        run,
        parameters(network.module).total,
        macs(program, reading.example(1)).total,
        (artifact.file(WEIGHTS),),
    )
