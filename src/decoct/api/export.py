"""`export` and `benchmark`: a module or artifact to a file that ships, and files measured side by side."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from decoct.api.arguments import loader_of
from decoct.api.integers import Integers, integers_of
from decoct.api.samples import Real, batches_of, feeds_of, like, like_program, named, samples_of
from decoct.artifact import Artifact, write_whole
from decoct.errors import IntegrityError, RecipeError
from decoct.meters.latency import measure
from decoct.meters.macs import macs
from decoct.meters.memory import peak_memory
from decoct.meters.parameters import parameters
from decoct.meters.size import file_bytes
from decoct.models.base import Network
from decoct.models.calls import logits_of
from decoct.models.interface import MAIN, Port, Program
from decoct.models.kinds import copyable, refuse_closed, refuse_half
from decoct.models.modes import as_in_training
from decoct.models.onnx_file import FileSession, open_session
from decoct.models.own_inputs import copy_of
from decoct.models.saving import load_model
from decoct.outputs import Batch
from decoct.quantization.audit import audit
from decoct.quantization.base import Feeds, Quantization
from decoct.quantization.floating import in_integers
from decoct.steps.shipping.parity import against_float, compare
from decoct.steps.shipping.proof import (
    refuse_other_file,
    refuse_other_graph,
    refuse_other_program,
    warn_of_noise,
)
from decoct.steps.shipping.quantize import quantization_record
from decoct.steps.shipping.speed import against_its_float, warn_of_cost
from decoct.targets.onnx import FILE, Onnx, graph, save
from decoct.tasks.base import Reading, read_task

EXAMPLE = "samples of the example"
FIRST = 64
"""Samples that are taken of a data set given as example."""
PLAIN = {"logits": Port(kind="logits")}
"""What a plain module gives, of which nothing is known."""


def export(
    model: nn.Module | Artifact,
    path: Path | str,
    *,
    example: Any = None,
    quantize: str | Quantization | None = None,
    calibration: Any = None,
    tolerance: float = 1e-4,
    keep_float: Literal["auto"] | None = None,
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes `model` as an ONNX file with a dynamic batch, runs the file on `example` and compares it with torch.

    `example`: real inputs with the batch axis first, a tensor or a mapping of them by the model's argument names. An
    artifact brings its task: its preprocessing and names, its dynamic axes, what must ship beside the file (a text
    student's `STEM.tokenizer.json`); its `example` is raw inputs as the task takes them; without one the comparison is
    on the calibration data, or else on made-up samples, which the record says (`verified["made_up"]`). Numbers are
    compared in standard deviations of the output. Torch's fast path of attention is off meanwhile: the file computes as
    the model did in training. Returns the record of results.json: `artifact`, `parameters`, `macs` of one sample,
    `file_bytes`, `verified`, and `assets`, the further files, where there are any. IntegrityError where the file
    differs from torch by more than `tolerance`; RecipeError for what cannot be exported. Nothing is left in either
    case.

    `quantize`: "int8" (static, activations and weights in 8 bits), another name of `decoct list quantization`, or a
    scheme. `calibration`: what static sees, at most 256 samples of training or validation data: a tensor, a mapping, or
    a loader whose items are inputs, (inputs, target) or mappings. `tolerance` is then that of the float graph, before
    it is quantized; `verified` says how the answers differ from the float model's (a warning below 20 dB of signal to
    noise), `audit` which layers run in integer kernels, `quantization` what was done, `speed` how the file compares
    with its float file on this machine (a warning where it is slower or larger). `keep_float="auto"` keeps those kinds
    of layers in float that make it slower here, and all where no integers pay; the scheme's `protect` names others.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     record = export(nn.Linear(4, 2), Path(folder) / "small.onnx", example=torch.ones(3, 4))
    >>> record["parameters"], record["macs"]
    (10, 8)
    """
    path, integers = Path(path), integers_of(quantize, calibration, keep_float)
    if isinstance(model, nn.Module):
        _refuse_kinds(copyable(model), None if integers is None else integers.scheme)
    example = _first(example)
    if isinstance(model, Artifact):
        return _export_artifact(_opened(model, example, calibration, given or {}), path, integers, tolerance)
    with _modes_kept(model):
        return _export_module(model, path, example, integers, calibration, tolerance)


def _refuse_kinds(model: nn.Module, scheme: Quantization | None) -> None:
    """RecipeError for a module that has no graph of its own, or whose type no kernel takes."""
    refuse_closed(model, "export")
    if scheme is None:
        refuse_half(model, "export to ONNX Runtime", (torch.bfloat16,))
    else:
        refuse_half(model, f"{scheme.use} quantization")


@contextlib.contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    """Each module in training or evaluation again, as it was."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _export_module(
    model: nn.Module, path: Path, example: Any, integers: Integers | None, calibration: Any, tolerance: float
) -> dict[str, Any]:
    """Writes a plain module, in integers where there is a scheme."""
    program, feed = _program(model, example)
    _warn_of_fast_path(path, program, feed)
    axes = {name: {0: "batch"} for name in feed}
    found = {name: value.numpy() for name, value in feed.items()}
    if integers is not None:
        proto = graph(Program(program, feed, axes, PLAIN), opset=Onnx().opset)
        feeds = feeds_of(calibration, lambda item: like("calibration", named(model, item, list(feed)), feed, axes))
        refuse_other_graph(str(path), program, proto, [found], PLAIN, tolerance, EXAMPLE)
        return _write_quantized(path, integers, proto, program, [found], feeds)
    with tempfile.TemporaryDirectory() as folder:
        written = Onnx().write({MAIN: Program(program, feed, axes, PLAIN)}, Path(folder))[MAIN]
        verified = compare(program, open_session(written), [found], PLAIN)
        refuse_other_file(str(path), program, verified, tolerance, EXAMPLE)
        write_whole(path, written.read_bytes())
    one = {name: value[:1] for name, value in feed.items()}
    return _record(path, program, one, verified.data())


@dataclass(frozen=True)
class _Opened:
    """An artifact that is to become a file: its model and how it reads, the samples to compare on, `real` where they
    came as batches with all that the task knows of them, calibration data, and what the record says of the samples."""

    reading: Reading
    network: Network
    batches: Sequence[Batch]
    real: bool
    calibration: Sequence[Mapping[str, np.ndarray]] | None
    note: Mapping[str, Any]


def _opened(artifact: Artifact, example: Any, calibration: Any, given: Mapping[str, Any]) -> _Opened:
    task = read_task(artifact)
    reading = task.reading(str(artifact.meta["side"]))
    seen = None if calibration is None else batches_of(reading, calibration, "calibration")
    feeds = None if seen is None else [like_program(reading, batch, "calibration") for batch in seen]
    network = load_model(artifact, given=given)
    if isinstance(example, Real):
        return _Opened(reading, network, example.batches, True, feeds, {})
    if example is None and seen is not None:
        return _Opened(reading, network, seen, True, feeds, {"on": "calibration"})
    note = {"made_up": True} if example is None else {}
    return _Opened(reading, network, [samples_of(reading, example)], False, feeds, note)


def _export_artifact(opened: _Opened, path: Path, integers: Integers | None, tolerance: float) -> dict[str, Any]:
    """Writes an artifact as its task says, in integers where there is a scheme, with what must ship beside it."""
    reading, kind = opened.reading, "samples" if opened.note or opened.real else EXAMPLE
    program = reading.programs(opened.network.module)[MAIN]
    if opened.real:
        refuse_other_program(str(path), reading, opened.network, program.module, opened.batches, tolerance)
    feeds = [reading.feed(batch) for batch in opened.batches]
    assets = {path.with_name(f"{path.stem}.{name}"): text for name, text in reading.assets().items()}
    if integers is not None:
        proto, seen = graph(program, opset=Onnx().opset), opened.calibration
        refuse_other_graph(str(path), program.module, proto, feeds, program.outputs, tolerance, kind)
        calibration = None if seen is None else lambda: iter(seen)
        record = _write_quantized(
            path, integers, proto, program.module, feeds, calibration, outputs=program.outputs, assets=assets
        )
    else:
        with tempfile.TemporaryDirectory() as folder:
            written = Onnx().write({MAIN: program}, Path(folder))[MAIN]
            verified = compare(program.module, open_session(written), feeds, program.outputs)
            refuse_other_file(str(path), program.module, verified, tolerance, kind)
            for place, text in assets.items():
                write_whole(place, text)
            write_whole(path, written.read_bytes())
        record = _record(path, program.module, reading.example(1), verified.data()) | _timed(path, feeds[0])
    record["verified"] |= opened.note
    return {**record, "assets": [str(each) for each in assets]} if assets else record


def _write_quantized(
    path: Path,
    integers: Integers,
    proto: Any,
    program: nn.Module,
    asked: Sequence[Mapping[str, np.ndarray]],
    feeds: Feeds | None,
    *,
    outputs: Mapping[str, Port] | None = None,
    assets: Mapping[Path, str] | None = None,
) -> dict[str, Any]:
    """Quantizes a graph, runs the file on `asked` beside the float program, and writes it after its `assets`."""
    found = integers.quantize(path, proto, feeds, asked[0])
    one = {name: torch.from_numpy(value[:1]) for name, value in asked[0].items()}
    with tempfile.TemporaryDirectory() as folder:
        written = save(found.graph, Path(folder) / FILE)
        verified = against_float(program, open_session(written), asked, outputs or PLAIN)
        if not np.isfinite(verified["max_abs_diff"]):
            raise IntegrityError(f"{path}: the quantized file answers with numbers that are not finite")
        kernels = audit(written, found.changes)
        speed = against_its_float(written, proto, asked[0])
        for place, text in (assets or {}).items():
            write_whole(place, text)
        write_whole(path, written.read_bytes())
    warn_of_noise(str(path), verified, stacklevel=5)
    if kernels.warning():
        warnings.warn(f"{path}: {kernels.warning()}", stacklevel=4)
    warn_of_cost(str(path), speed, stacklevel=5)
    return {
        **_record(path, program, one, verified),
        "float_bytes": proto.ByteSize(),
        "audit": kernels.data(),
        "quantization": quantization_record(integers.scheme, found, {}),
        "speed": speed.data(),
    }


def _timed(path: Path, feed: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How a file whose quantizers were learned compares with what it is in float; empty for one in float."""
    import onnx

    proto = onnx.load(str(path))
    if not in_integers(proto):
        return {}
    speed = against_its_float(path, proto, feed)
    warn_of_cost(str(path), speed, stacklevel=5)
    return {"speed": speed.data()}


def _record(path: Path, program: nn.Module, one: Mapping[str, Tensor], verified: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "artifact": str(path),
        "parameters": parameters(program).total,
        "macs": macs(program, one).total,
        "file_bytes": file_bytes(path),
        "verified": dict(verified),
    }


def benchmark(
    models: Mapping[str, Path | str | Artifact],
    *,
    threads: int = 1,
    batch: int = 1,
    length: int = 64,
    repeats: int = 200,
    warmup: int = 20,
) -> dict[str, dict[str, Any]]:
    """Latency, size and memory of ONNX files, interleaved in one measurement; a record for each by its name.

    `models`: paths of ONNX files or exported artifacts. Inputs are made up in the shapes that each file declares: its
    first free axis is `batch`, every other `length`.
    """
    if not models:
        raise RecipeError("models is empty; give files by name, such as {'small': 'small.onnx'}")
    paths = {
        name: value.file("model.onnx") if isinstance(value, Artifact) else Path(value) for name, value in models.items()
    }
    sessions = {name: open_session(path, threads=threads) for name, path in paths.items()}
    feeds = {name: _made_up(session, batch, length) for name, session in sessions.items()}
    calls = {name: _call(sessions[name], feeds[name]) for name in sessions}
    found = measure(calls, repeats=repeats, warmup=warmup)
    return {
        name: {
            "name": name,
            "artifact": str(paths[name]),
            "file_bytes": file_bytes(paths[name]),
            "peak_memory_bytes": peak_memory(paths[name], feeds[name], threads=threads),
            "latency": {
                "runtime": "onnxruntime",
                "threads": threads,
                "batch": batch,
                "p50_ms": each.p50_ms,
                "p99_ms": each.p99_ms,
                "min_ms": each.min_ms,
                "mean_ms": each.mean_ms,
                "repeats": each.repeats,
                "noisy": each.noisy,
                "throughput_per_s": 1e3 * batch / each.mean_ms,
            },
        }
        for name, each in found.items()
    }


class _Plain(nn.Module):
    """A model whose answer is its logits: a tensor, or an object with `.logits`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        given = {} if set(inputs) == {"input"} else inputs
        outputs = self.model(**given) if given else self.model(inputs["input"])
        return logits_of(outputs)


def _first(example: Any) -> Any:
    """The inputs of a torch data set's first samples; whatever else came as it is."""
    loader = loader_of(example, FIRST)
    if loader is example:
        return example
    batch = next(iter(loader))
    return batch[0] if isinstance(batch, list | tuple) else batch


def _program(model: nn.Module, example: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    if example is None:
        raise RecipeError("example is missing; give one batch of real inputs, example=x")
    feed = dict(example) if isinstance(example, Mapping) else {"input": example}
    for name, value in feed.items():
        if not isinstance(value, Tensor | np.ndarray):
            raise RecipeError(f"example: {name} is a {type(value).__name__}; give a tensor, or a mapping of tensors")
    program, feed = _Plain(model).eval(), {name: torch.as_tensor(each).detach().cpu() for name, each in feed.items()}
    try:
        with torch.no_grad(), as_in_training():
            program(**copy_of(feed))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        given = ", ".join(f"{name} {str(each.dtype)[6:]} {list(each.shape)}" for name, each in feed.items())
        reason = next(iter(str(error).splitlines()), "")[:200]
        raise RecipeError(
            f"example: the model does not run on {given}: {reason}; give a batch of real inputs, the batch axis first"
        ) from error
    return program, feed


def _warn_of_fast_path(path: Path, program: nn.Module, feed: Mapping[str, Tensor]) -> None:
    """Warns where the module in eval mode, as its owner may ask it, answers otherwise than in training."""
    if not torch.backends.mha.get_fastpath_enabled():
        return
    with torch.no_grad():
        fast = program(**copy_of(feed))
        with as_in_training():
            plain = program(**copy_of(feed))
    if fast.shape != plain.shape or not torch.allclose(fast, plain, rtol=1e-3, atol=1e-3, equal_nan=True):
        warnings.warn(
            f"{path}: in eval mode torch takes a fast path through the model's attention, which answers otherwise than "
            "the model did in training (padded places become zeros); the file computes as in training. To compare: "
            "torch.backends.mha.set_fastpath_enabled(False)",
            stacklevel=4,
        )


def _made_up(session: FileSession, batch: int, length: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    feed = {}
    for port in session.inputs:
        free = iter([batch])
        shape = [size if isinstance(size, int) else next(free, length) for size in port.shape]
        kind = np.dtype({"float": "float32", "double": "float64"}.get(port.type, port.type))
        values = random.standard_normal(shape) if kind.kind == "f" else np.ones(shape)
        feed[port.name] = values.astype(kind)
    return feed


def _call(session: FileSession, feed: Mapping[str, np.ndarray]) -> Any:
    return lambda: session(feed)
