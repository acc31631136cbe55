"""Export: a model as the file that ships, compared with torch on real samples."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from decoct.artifact import Artifact, Draft, writing
from decoct.errors import RecipeError
from decoct.meters.macs import macs
from decoct.meters.parameters import parameters
from decoct.meters.size import file_bytes
from decoct.models.base import Model, Network
from decoct.models.interface import MAIN
from decoct.models.onnx_file import opset
from decoct.models.onnx_model import OnnxFile
from decoct.models.saving import load_model
from decoct.outputs import Batch
from decoct.quantization.audit import audit
from decoct.spec import Choice
from decoct.steps.base import Context, Inputs, Step
from decoct.steps.learning.batches import evaluation_batches, has_split
from decoct.steps.learning.pretrained import network_of
from decoct.steps.records import EXPORTED, SPEED
from decoct.steps.shipping.asking import beside, manual_of, put_into
from decoct.steps.shipping.budgets import Budgets, keep
from decoct.steps.shipping.parity import compare
from decoct.steps.shipping.proof import refuse_other_file, refuse_other_program
from decoct.steps.shipping.speed import against_its_float, warn_of_cost
from decoct.targets.base import Target
from decoct.targets.lowering import has_onnx_forms
from decoct.targets.onnx import FILE, Onnx

if TYPE_CHECKING:
    from decoct.tasks.base import Reading

SPLITS = ("test", "validation", "train")


class Export(Step, Budgets):
    """Writes a model in a format to ship, with its preprocessing inside, and proves that the file says the same.

    `target` the format; `tolerance` the largest difference from the model, asked as it was in training and scoring, on
    `samples` real samples (inputs alone), for numbers in standard deviations of the output; an estimator is shipped as
    it is. A model of the recipe that was trained elsewhere is exported with the teacher's preprocessing. Where the file
    differs by more, IntegrityError, and nothing is left. A model from qat is written in integers, whose rounding is not
    bitwise torch's: it may differ by a quarter of its outputs' standard deviation, on average by a hundredth, and
    `audit` in exported.json says which layers run in integers. `min_quality` of the task's main metric on validation
    data, `max_latency_ms` of one sample on one thread and `max_size_bytes` are budgets, measured on the file: one that
    is missed raises BudgetMissed.
    """

    use: ClassVar[str] = "export"
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": ("model", "estimator", "spec")}
    gives: ClassVar[str] = "exported"
    machine_bound_by: ClassVar[tuple[str, ...]] = ("max_latency_ms",)

    target: Annotated[Target, Choice("decoct.targets")] = Onnx()
    tolerance: float = Field(default=1e-4, gt=0)
    samples: int = Field(default=256, ge=1)

    def run(self, inputs: Inputs, context: Context) -> Artifact:
        source = inputs["model"]
        made = isinstance(source, Artifact)
        side = str(source.meta["side"]) if made else "teacher"
        origin = source.name if made else str(context.lineage["model"][0]["model"])
        seed = source.meta.get("seed", context.run_seed) if made else context.run_seed
        meta = {"side": side, "seed": seed, "source": origin}
        with writing(
            context.folder, kind="exported", name=context.name, key=context.key, lineage=context.lineage, meta=meta
        ) as draft:
            facts = self._facts(source, context, side, draft.folder)
            self._time(facts, context, side, draft)
            target = Onnx() if facts["file"] == FILE else self.target
            kept = keep(self, target, draft.folder / facts["file"], context, inputs, side)
            facts |= {"budgets": kept} if kept else {}
            for name, text in context.task.reading(side).assets().items():
                (draft.folder / name).write_text(text, encoding="utf-8")
            if isinstance(target, Onnx):
                beside(draft.folder, manual_of(context.task.reading(side), context.data.info))
            draft.meta.update({name: facts[name] for name in ("parameters", "macs", "verified")})
            draft.scores.update(source.scores if made else {})
            draft.write_json(EXPORTED, {**facts, "side": side, "source": origin, "target": target.plain()})
            draft.write_json("task.json", context.task.plain())
        return Artifact.load(context.folder)

    def _facts(self, source: Artifact | Model, context: Context, side: str, folder: Path) -> dict[str, Any]:
        if isinstance(source, OnnxFile):
            raise RecipeError(already_a_file(source))
        if isinstance(source, Model):
            network = network_of(source, context.task, side, context.given, answers=True)
            return self._exported(network, context, side, folder)
        if source.kind == "estimator":
            return _shipped(source, folder, manual_of(context.task.reading(side), context.data.info))
        return self._exported(load_model(source, given=context.given), context, side, folder)

    def _exported(self, network: Network, context: Context, side: str, folder: Path) -> dict[str, Any]:
        reading = context.task.reading(side)
        programs = reading.programs(network.module)
        paths = self.target.write(programs, folder)
        if isinstance(self.target, Onnx):
            put_into(paths[MAIN], manual_of(reading, context.data.info))
        path, program = paths[MAIN], programs[MAIN].module
        context.progress(1, 2, "comparing the file with torch")
        batches = verification(context, self.samples)
        refuse_other_program(context.name, reading, network, program, batches, self.tolerance)
        feeds = [reading.feed(batch) for batch in batches]
        parity = compare(program, self.target.load(path), feeds, programs[MAIN].outputs)
        rounds = has_onnx_forms(program)
        allowed = refuse_other_file(context.name, program, parity, self.tolerance)
        count, one = parameters(network.module), reading.example(1)
        return {
            "verified": parity.data() | ({"tolerance": allowed} if rounds else {}),
            **(self._kernels(path, context) if rounds else {}),
            "parameters": count.total,
            "macs": macs(program, one).total,
            **describe(path, reading, self.target, paths),
        }

    def _time(self, facts: Mapping[str, Any], context: Context, side: str, draft: Draft) -> None:
        """Times a file in integers beside what it is in float."""
        import onnx

        if "audit" not in facts:
            return
        path, feed = draft.folder / facts["file"], context.task.reading(side).feed(verification(context, 1)[0])
        speed = against_its_float(path, onnx.load(str(path)), feed)
        warn_of_cost(context.name, speed)
        draft.write_json(SPEED, speed.data())

    def _kernels(self, path: Path, context: Context) -> dict[str, Any]:
        """The audit of a file in integers, with a warning where some layers are not."""
        if not isinstance(self.target, Onnx):
            return {}
        kernels = audit(path)
        if kernels.warning():
            warnings.warn(f"{context.name}: {kernels.warning()}", stacklevel=4)
        return {"audit": kernels.data()}


def already_a_file(model: OnnxFile) -> str:
    """The sentence for a model that needs no export."""
    return f"{model.path} is an ONNX file already; decoct.benchmark measures it, and it may teach in distill"


def verification(context: Context, samples: int) -> list[Batch]:
    """The inputs of the first `samples` real samples, of the test split where there is one."""
    name = next((name for name in SPLITS if has_split(context, name)), None)
    if name is None:
        raise RecipeError(
            "export: there are no samples to verify the file on; give data with a split that is not empty"
        )
    found: list[Batch] = []
    for batch in evaluation_batches(context, name):
        rest = samples - sum(len(each) for each in found)
        found.append(head(batch, rest))
        if sum(len(each) for each in found) >= samples:
            break
    return found


def head(batch: Batch, count: int) -> Batch:
    """The first `count` samples."""
    return batch.take(slice(count))


def describe(
    path: Path, reading: Reading, target: Target | None = None, paths: Mapping[str, Path] | None = None
) -> dict[str, Any]:
    """Facts about a file: its bytes (of all that belong to it), inputs, outputs and, of ONNX, the opset; `paths`: all
    programs that ship, where there are several."""
    target = Onnx() if target is None else target
    axes = reading.axes()
    inputs = [
        {
            "name": name,
            "type": str(tensor.dtype).removeprefix("torch."),
            "shape": [axes.get(name, {}).get(axis, size) for axis, size in enumerate(tensor.shape)],
        }
        for name, tensor in reading.example().items()
    ]
    outputs = list(reading.outputs)
    every = [path] if paths is None else list(paths.values())
    return {
        "file": path.name,
        "file_bytes": sum(file_bytes(each) for one in every for each in target.files(one)),
        "inputs": inputs,
        "output": outputs[0],
        **({"outputs": outputs} if len(outputs) > 1 else {}),
        **({"programs": {name: each.name for name, each in (paths or {}).items()}} if len(every) > 1 else {}),
        **({"opset": opset(path)} if isinstance(target, Onnx) else {}),
    }


def _shipped(source: Artifact, folder: Path, manual: Mapping[str, Any] | None) -> dict[str, Any]:
    """An estimator's own file, verified when it was made, with its manual."""
    shutil.copy(source.file(FILE), folder / FILE)
    put_into(folder / FILE, manual)
    return {
        "verified": source.meta["verified"],
        "parameters": source.meta["parameters"],
        "macs": None,
        "file": FILE,
        "file_bytes": file_bytes(folder / FILE),
        "opset": opset(folder / FILE),
    }
