"""Whether a model can become a file: what `check` asks before anything is trained."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decoct.artifact import Artifact
from decoct.errors import RecipeError
from decoct.models.base import Model
from decoct.models.modes import evaluating
from decoct.models.onnx_model import OnnxFile
from decoct.steps.learning.building import build_student
from decoct.steps.shipping.export import Export, already_a_file
from decoct.steps.shipping.quantize import Quantize
from decoct.targets.base import Target
from decoct.targets.onnx import Onnx

if TYPE_CHECKING:
    from decoct.steps.base import Context
    from decoct.steps.learning.saving import Student

ELSEWHERE = ("http", "black_box")
"""Models that answer elsewhere and have no network here."""


def target_of(step: Export | Quantize) -> Target:
    """The format that a step writes."""
    return step.target if isinstance(step, Export) else Onnx(opset=step.opset)


def student_of(value: Any, context: Context) -> Student | None:
    """The network of a recipe's model that is to be exported, as yet untrained; None where it is a file or estimator of
    an earlier run. RecipeError for a model that has none."""
    if isinstance(value, Artifact) and value.kind != "model":
        return None
    if isinstance(value, OnnxFile):
        raise RecipeError(f"inputs.model: {already_a_file(value)}")
    if isinstance(value, Model) and value.reads_rows:
        raise RecipeError(f"inputs.model: {value.use} is a file of another library, which ships as it is; let it teach")
    if isinstance(value, Model) and value.use in ELSEWHERE:
        raise RecipeError(f"inputs.model: {value.use} answers elsewhere, there is no network to export; let it teach")
    return build_student(value, context.task, "teacher", context.given, answers=True)


def refuse_what_cannot_ship(student: Student, target: Target, context: Context) -> None:
    """Writes the untrained network as it will be written, and throws the file away; RecipeError says what stands in the
    way. Networks that are known to become ONNX files are not tried."""
    if student.spec.becomes_onnx and isinstance(target, Onnx):
        return
    with evaluating(student.module), tempfile.TemporaryDirectory() as folder:
        target.write(context.task.reading(student.side).programs(student.module), Path(folder))
