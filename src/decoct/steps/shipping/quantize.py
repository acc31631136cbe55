"""Quantize: a trained model as a file that computes with integers, compared with the float model on real samples."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from decoct.artifact import Artifact, writing
from decoct.data.base import Split
from decoct.data.sources import ordered
from decoct.errors import DataError, IntegrityError, RecipeError, did_you_mean
from decoct.meters.macs import macs
from decoct.meters.parameters import parameters
from decoct.models.base import Network
from decoct.models.interface import MAIN
from decoct.models.onnx_file import FileSession, open_session
from decoct.models.saving import load_model
from decoct.outputs import Batch
from decoct.quantization.audit import audit
from decoct.quantization.base import Feeds, Judge, Quantization, Quantized
from decoct.quantization.floating import has_quantizers
from decoct.quantization.static import Static
from decoct.spec import Choice
from decoct.steps.base import Context, Inputs, Step
from decoct.steps.learning.batches import has_split, scores, splits_of
from decoct.steps.records import EXPORTED, SPEED, Exported
from decoct.steps.shipping.asking import beside, manual_of, with_manual
from decoct.steps.shipping.benchmark import finite
from decoct.steps.shipping.budgets import Budgets, keep
from decoct.steps.shipping.export import describe, head, verification
from decoct.steps.shipping.keeping import faster
from decoct.steps.shipping.parity import against_float
from decoct.steps.shipping.proof import refuse_other_graph, refuse_other_program, warn_of_noise
from decoct.steps.shipping.speed import Feed, against_its_float, warn_of_cost
from decoct.targets.onnx import FILE, Onnx, graph, save
from decoct.teachers.onnx import file_predictor
from decoct.training.compression import Change

if TYPE_CHECKING:
    import onnx


SPLITS = ("train", "validation")
CALIBRATION_BATCH = 32
TOLERANCE = 1e-4


class Quantize(Step, Budgets):
    """Writes a model as an ONNX file that computes with integers, and measures what that changed.

    `scheme`: how, one of `decoct list quantization`; it sees `calibration_samples` of `calibration_split` (train or
    validation, never test). On `samples` real samples the float graph is compared with the model first (`tolerance` as
    in export), then the file with the float model; below 20 dB of signal to noise a warning follows. The operators that
    the runtime executes in integers are counted (`audit` in exported.json). A model that learned with its quantizers
    inside keeps them: `scheme` and calibration are not used. The file is timed beside its float file (`speed.json`),
    and a warning says where it is slower or larger. `keep_float`: auto keeps those kinds of layers in float that make
    it slower on this machine, and the whole file where no integers pay; what the scheme protects stays so anyway.
    `min_quality`, `max_latency_ms` and `max_size_bytes` are budgets as in export. `opset`: the version of the standard
    operators.
    """

    use: ClassVar[str] = "quantize"
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": ("model", "exported")}
    gives: ClassVar[str] = "exported"
    machine_bound_by: ClassVar[tuple[str, ...]] = ("max_latency_ms", "keep_float")

    scheme: Annotated[Quantization, Choice("decoct.quantization")] = Static()
    calibration_split: str = "train"
    calibration_samples: int = Field(default=256, ge=1)
    samples: int = Field(default=256, ge=1)
    tolerance: float = Field(default=TOLERANCE, gt=0, exclude_if=lambda value: value == TOLERANCE)
    opset: int = Field(default=20, ge=18, le=23)
    keep_float: Literal["auto"] | None = Field(default=None, exclude_if=lambda value: value is None)

    @field_validator("calibration_split")
    @classmethod
    def _never_test(cls, value: str) -> str:
        if value == "test":
            raise ValueError("test data may not calibrate, its score would flatter; use train or validation")
        if value not in SPLITS:
            raise ValueError(f"{value!r} is no split to calibrate on; {did_you_mean(value, SPLITS)}")
        return value

    def run(self, inputs: Inputs, context: Context) -> Artifact:
        source = inputs["model"]
        side = str(source.meta["side"])
        meta = {"side": side, "seed": source.meta.get("seed", context.run_seed), "source": source.name}
        context.progress(0, 3, "the float graph")
        floating = open_float(source, context, self.opset)
        manual = manual_of(context.task.reading(side), context.data.info)
        with_manual(floating.graph, manual)  # the files are compared in size
        with writing(
            context.folder, kind="exported", name=context.name, key=context.key, lineage=context.lineage, meta=meta
        ) as draft:
            self._prove(floating, context)
            sample = context.task.reading(side).feed(verification(context, 1)[0])
            found = self._quantized(floating.graph, context, side, sample)
            path = save(with_manual(found.graph, manual), draft.folder / FILE)
            beside(draft.folder, manual)
            context.progress(2, 3, "comparing the file with the float model")
            record = {
                **written(path, floating, context, self.samples, found.changes),
                "quantization": quantization_record(self.scheme, found, self._calibration(found)),
                "side": side,
                "source": source.name,
                "target": Onnx(opset=self.opset).plain(),
            }
            speed = against_its_float(path, floating.graph, sample)
            warn_of_cost(context.name, speed, stacklevel=2)
            draft.write_json(SPEED, finite(speed.data()))
            kept = keep(self, Onnx(), path, context, inputs, side)
            record |= {"budgets": kept} if kept else {}
            for name, text in context.task.reading(side).assets().items():
                (draft.folder / name).write_text(text, encoding="utf-8")
            numbers = {name: value for name, value in record["verified"].items() if isinstance(value, float | int)}
            draft.meta.update({"parameters": record["parameters"], "macs": record["macs"], "verified": numbers})
            draft.scores.update(scores_of(path, context, side))
            draft.write_json(EXPORTED, finite(record))
            draft.write_json("task.json", context.task.plain())
        return Artifact.load(context.folder)

    def _prove(self, floating: Floating, context: Context) -> None:
        """IntegrityError where the float graph is not the model; of an exported file its export has shown that."""
        if floating.network is None:
            return
        reading, batches = context.task.reading(floating.side), verification(context, self.samples)
        refuse_other_program(context.name, reading, floating.network, floating.program, batches, self.tolerance)
        feeds = [reading.feed(batch) for batch in batches]
        refuse_other_graph(context.name, floating.program, floating.graph, feeds, reading.outputs, self.tolerance)

    def _quantized(self, proto: onnx.ModelProto, context: Context, side: str, sample: Feed) -> Quantized:
        if has_quantizers(proto):
            return Quantized(proto, facts={"quantizers": "learned with the weights"})
        feeds = None
        if self.scheme.calibrates:
            feeds = calibration(context, side, self.calibration_split, self.calibration_samples)
        context.progress(1, 3, f"quantization: {self.scheme.use}")
        judge = judge_of(context, side)
        if self.keep_float == "auto":
            return faster(context.name, self.scheme, proto, feeds, judge, sample)
        return self.scheme.quantize(proto, feeds, judge)

    def _calibration(self, found: Quantized) -> dict[str, Any]:
        if not self.scheme.calibrates or "quantizers" in found.facts:
            return {}
        return {"split": self.calibration_split, "samples": self.calibration_samples}


@dataclass(frozen=True)
class Floating:
    """The float model that is quantized: its graph, what answers as it does, its side, parameters and MACs."""

    graph: onnx.ModelProto
    program: nn.Module
    side: str
    parameters: int | None
    macs: int | None
    network: Network | None = None
    """The model itself, where the graph was made of it just now."""


def open_float(source: Artifact, context: Context, opset: int) -> Floating:
    """The float graph of a model artifact, or of an exported one; RecipeError for one that is in integers already."""
    side = str(source.meta["side"])
    if source.kind == "exported":
        return _exported(source, side)
    reading = context.task.reading(side)
    network = load_model(source, given=context.given)
    program = reading.programs(network.module)[MAIN]
    total = macs(program.module, reading.example(1)).total
    count = parameters(program.module).total
    return Floating(graph(program, opset=opset), program.module, side, count, total, network)


def _exported(source: Artifact, side: str) -> Floating:
    import onnx

    record, path = source.json(EXPORTED, Exported), source.file(FILE)
    proto = onnx.load(str(path))
    if "quantization" in record or has_quantizers(proto):
        raise RecipeError(f"{source.name} is quantized already; quantize the float model that it was made from")
    return Floating(proto, FileProgram(open_session(path)), side, record["parameters"], record.get("macs"))


class FileProgram(nn.Module):
    """An ONNX file, called as the program that it was made from."""

    def __init__(self, session: FileSession) -> None:
        super().__init__()
        self.session = session

    def forward(self, **inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        outputs = self.session({name: value.numpy() for name, value in inputs.items()})
        found = tuple(torch.from_numpy(each) for each in outputs.values())
        return found if len(found) > 1 else found[0]


def calibration(context: Context, side: str, name: str, count: int) -> Feeds:
    """Feeds of `count` samples drawn evenly from a split (of a loader, its first); DataError where there are none."""
    if not has_split(context, name):
        raise DataError(
            f"calibration_split: the data have no samples in split {name!r}; {did_you_mean(name, SPLITS)}, "
            "or choose a scheme that needs no calibration"
        )
    batches = list(_drawn(context, name, count))
    if not batches:
        raise DataError(f"calibration_split: the loader of split {name!r} gave no batch; give one with samples")
    return lambda: (context.task.reading(side).feed(batch) for batch in batches)


def _drawn(context: Context, name: str, count: int) -> Iterator[Batch]:
    split = splits_of(context)[name]
    batches: Iterable[Batch]
    if isinstance(split, Split):
        order = np.random.default_rng(0).permutation(len(split))[:count]
        batches = ordered(split.take(np.sort(order)), context.collate, batch_size=CALIBRATION_BATCH)
    else:
        batches = (context.task.from_loader(item) for item in split)
    for batch in batches:
        if count <= 0:
            return
        yield head(batch, count)
        count -= len(batch)


def judge_of(context: Context, side: str) -> Judge | None:
    """The task's main score of a graph on the validation split, more is better; None without such a split."""
    if not has_split(context, "validation"):
        return None
    name, better = context.task.metric

    def judge(proto: onnx.ModelProto) -> float:
        with tempfile.TemporaryDirectory() as folder:
            session = open_session(save(proto, Path(folder) / FILE))
        score = scores(file_predictor(session, context.task.reading(side)), context, "validation")[name]
        return score if better == "max" else -score

    return judge


def scores_of(path: Path, context: Context, side: str) -> dict[str, float]:
    """The figures of the file itself on the validation split; none without such a split."""
    if not has_split(context, "validation"):
        return {}
    return scores(file_predictor(open_session(path), context.task.reading(side)), context, "validation")


def written(
    path: Path, floating: Floating, context: Context, samples: int, changes: Sequence[Change] = ()
) -> dict[str, Any]:
    """Facts about a quantized file: how it compares with the float model, its size, and the audit of its kernels.

    A warning where layers run in float, or activations between them; IntegrityError where answers are not finite.
    """
    reading = context.task.reading(floating.side)
    feeds = [reading.feed(batch) for batch in verification(context, samples)]
    verified = against_float(floating.program, open_session(path), feeds, reading.outputs)
    if not np.isfinite(verified["max_abs_diff"]):
        raise IntegrityError(f"{context.name}: the quantized file answers with numbers that are not finite")
    warn_of_noise(context.name, verified)
    kernels = audit(path, changes)
    if kernels.warning():
        warnings.warn(f"{context.name}: {kernels.warning()}", stacklevel=3)
    return {
        "verified": verified,
        "parameters": floating.parameters,
        "macs": floating.macs,
        "float_bytes": floating.graph.ByteSize(),
        "audit": kernels.data(),
        **describe(path, reading),
    }


def quantization_record(scheme: Quantization, found: Quantized, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """What exported.json says of a quantization: scheme, calibration data, what became of each layer, facts."""
    return {
        "scheme": scheme.plain(),
        "calibration": dict(drawn),
        "changes": [each.data() for each in found.changes],
        "facts": dict(found.facts),
    }
