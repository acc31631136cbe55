"""The chain of a run: which models were made smaller, where the chain ends, and which file in float is its twin."""

from __future__ import annotations

from decoct.report import units
from decoct.report.records import Kernel, Kernels, ModelRecord, Results

TEACHER, ALONE, STUDENT = "teacher", "student_alone", "student"
WRITERS = ("export", "quantize", "qat")
"""Steps that change how numbers are written, and nothing of a model's structure."""
NAMED = 5
"""Layers that a sentence names."""


def is_teacher(model: ModelRecord) -> bool:
    """Whether the model is a teacher by its name."""
    return model.name.startswith(TEACHER)


def compressed(results: Results, model: ModelRecord) -> int:
    """Through how many steps that make smaller a model came; 0 for one that none did."""
    steps = {each.step for each in results.compressions}
    return len(steps & {*model.chain, model.step})


def end_of(results: Results) -> ModelRecord | None:
    """The model that came through most steps that make smaller, of several the last; None where nothing was."""
    made = [model for model in results.models if compressed(results, model) and not is_teacher(model)]
    return max(reversed(made), key=lambda model: compressed(results, model), default=None)


def teacher_of(results: Results, model: ModelRecord | None = None) -> ModelRecord | None:
    """The model that taught, where it was evaluated; of a compressed model the one measured in the same way, if any."""
    named = [each for each in results.models if is_teacher(each)]
    first = results.model(TEACHER) or next(iter(named), None)
    if first is None or model is None or model.latency is None or not compressed(results, model):
        return first
    return next((t for t in [first, *named] if t.latency and t.latency.comparable(model.latency)), first)


def twin_of(results: Results, model: ModelRecord) -> ModelRecord | None:
    """The same model as a file in float, measured in the same way; None where there is none, or `model` is in float."""
    own = _line(results, model)
    if not model.quantized or not own or model.latency is None:
        return None
    for each in results.models:
        alike = each.latency is not None and each.latency.comparable(model.latency)
        if not each.quantized and alike and _line(results, each) == own:
            return each
    return None


def _line(results: Results, model: ModelRecord) -> list[str]:
    """The steps that gave a model its structure."""
    uses = {step.name: step.use for step in results.steps}
    return [step for step in model.chain if uses.get(step) not in WRITERS]


def told(kernels: Kernels, of: str = "") -> str:
    """In which kernels the layers of a quantized file run, as a sentence; empty where nothing is known.

    >>> told(Kernels(int8=3, float=1, left=[Kernel(layer="head", operator="Gemm", cause="protected")]), " of s8")
    '1 of 4 operators of s8 stays in float: head (Gemm): protected.'
    """
    if not kernels.total:
        return ""
    left = kernels.outside
    floats = [each for each in left if each.runs in ("float", "")]
    parts = []
    if kernels.float:
        verb = "stays" if kernels.float == 1 else "stay"
        parts.append(f"{kernels.float} of {kernels.total} operators{of} {verb} in float{_named(floats)}")
    if kernels.weights:
        count = f"{kernels.weights} of {kernels.total} operators{of}"
        parts.append(f"{count} {'keeps' if kernels.weights == 1 else 'keep'} weights in integers and compute in float")
    if not parts:
        parts.append(f"All {kernels.total} operators{of} with weights run in integers")
    if kernels.between:
        names = ", ".join(f"{count} {name}" for name, count in kernels.between.items())
        parts.append(f"Between integer layers the runtime computes {names} in float")
    return ". ".join(parts) + "."


def _named(left: list[Kernel]) -> str:
    if not left:
        return ""
    more = f"; and {len(left) - NAMED} more" if len(left) > NAMED else ""
    return ": " + "; ".join(each_told(each) for each in left[:NAMED]) + more


def each_told(kernel: Kernel) -> str:
    """A layer, what runs it and why it does not compute in integers."""
    return f"{kernel.layer} ({kernel.operator})" + (f": {kernel.cause}" if kernel.cause else "")


def size_told(model: ModelRecord, twin: ModelRecord) -> str:
    """The file against that of its twin, as a sentence; empty where one of them is not known."""
    if not model.file_bytes or not twin.file_bytes:
        return ""
    ratio = twin.file_bytes / model.file_bytes
    sizes = f"({units.size(model.file_bytes)} against {units.size(twin.file_bytes)})"
    if max(ratio, 1 / ratio) < 1.02:
        return f" Its file is as large {sizes}."
    way = "smaller" if ratio > 1 else "larger"
    return f" Its file is {units.times(max(ratio, 1 / ratio))} times {way} {sizes}."
