"""`export` and `benchmark`: a module or artifact to a file that ships, and files measured side by side."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from decoct.artifact import Artifact, write_whole
from decoct.errors import DataError, IntegrityError, RecipeError, did_you_mean
from decoct.meters.latency import measure
from decoct.meters.macs import macs
from decoct.meters.memory import peak_memory
from decoct.meters.parameters import parameters
from decoct.meters.size import file_bytes
from decoct.models.interface import MAIN, Port, Program
from decoct.models.onnx_file import FileSession, open_session
from decoct.models.saving import load_model
from decoct.outputs import Batch
from decoct.quantization import CATALOGUE as SCHEMES
from decoct.quantization.audit import audit
from decoct.quantization.base import Feeds, Quantization
from decoct.steps.shipping.parity import against_float, compare
from decoct.steps.shipping.quantize import quantization_record
from decoct.targets.onnx import FILE, Onnx, graph, save
from decoct.tasks.base import Reading, read_task

CALIBRATION_SAMPLES = 256
PLAIN = {"logits": Port(kind="logits")}
"""What a plain module gives, of which nothing is known."""
NAMES = ("int8", *SCHEMES)


def export(
    model: nn.Module | Artifact,
    path: Path | str,
    *,
    example: Any = None,
    quantize: str | Quantization | None = None,
    calibration: Any = None,
    tolerance: float = 1e-4,
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes `model` as an ONNX file with a dynamic batch, runs the file on `example` and compares it with torch.

    `example`: real inputs with the batch axis first, a tensor or a mapping of them by the model's argument names. An
    artifact brings its task: its preprocessing and names, its dynamic axes, what must ship beside the file (a text
    student's `STEM.tokenizer.json`); its `example` is raw inputs as the task takes them, and without one the comparison
    is on made-up samples, which the record says (`verified["made_up"]`). Numbers are compared in standard deviations
    of the output. Returns the record of results.json: `artifact`, `parameters`, `macs` of one sample, `file_bytes`,
    `verified`, and `assets`, the further files, where there are any. IntegrityError where the file differs from torch
    by more than `tolerance`; RecipeError for what cannot be exported. Nothing is left in either case.

    `quantize`: "int8" (static, activations and weights in 8 bits), another name of `decoct list quantization`, or a
    scheme. `calibration`: what static sees, at most 256 samples of training or validation data: a tensor, a mapping, or
    a loader whose items are inputs, (inputs, target) or mappings. There is no tolerance then; `verified` says how the
    answers differ from the float model's, `audit` which layers run in integer kernels, `quantization` what was done.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     record = export(nn.Linear(4, 2), Path(folder) / "small.onnx", example=torch.ones(3, 4))
    >>> record["parameters"], record["macs"]
    (10, 8)
    """
    path, scheme = Path(path), _scheme(quantize, calibration)
    if isinstance(model, Artifact):
        if scheme is not None:
            return _quantize_artifact(model, path, example, scheme, calibration, given or {})
        return _export_artifact(model, path, example, tolerance, given or {})
    with _modes_kept(model):
        return _export_module(model, path, example, scheme, calibration, tolerance)


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
    model: nn.Module, path: Path, example: Any, scheme: Quantization | None, calibration: Any, tolerance: float
) -> dict[str, Any]:
    """Writes a plain module, in integers where there is a scheme."""
    program, feed = _program(model, example)
    axes = {name: {0: "batch"} for name in feed}
    if scheme is not None:
        proto = graph(Program(program, feed, axes, PLAIN), opset=Onnx().opset)
        feeds = _feeds(calibration, lambda item: _like("calibration", _named(item, list(feed)), feed, axes))
        found = {name: value.numpy() for name, value in feed.items()}
        return _write_quantized(path, scheme, proto, program, found, feeds)
    with tempfile.TemporaryDirectory() as folder:
        written = Onnx().write({MAIN: Program(program, feed, axes, PLAIN)}, Path(folder))[MAIN]
        verified = _compared(program, open_session(written), feed)
        _within(path, verified, tolerance)
        write_whole(path, written.read_bytes())
    one = {name: value[:1] for name, value in feed.items()}
    return _record(path, program, one, verified)


def _export_artifact(
    artifact: Artifact, path: Path, example: Any, tolerance: float, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes an artifact as its task says, with what must ship beside it."""
    task = read_task(artifact)
    side = str(artifact.meta["side"])
    reading = task.reading(side)
    program = reading.programs(load_model(artifact, given=given).module)[MAIN]
    feed = reading.feed(_samples(reading, example))
    with tempfile.TemporaryDirectory() as folder:
        written = Onnx().write({MAIN: program}, Path(folder))[MAIN]
        verified = compare(program.module, open_session(written), [feed], program.outputs).data()
        if example is None:
            verified["made_up"] = True
        _within(path, verified, tolerance)
        assets = {path.with_name(f"{path.stem}.{name}"): text for name, text in reading.assets().items()}
        for place, text in assets.items():
            write_whole(place, text)
        write_whole(path, written.read_bytes())
    record = _record(path, program.module, reading.example(1), verified)
    return {**record, "assets": [str(each) for each in assets]} if assets else record


def _scheme(quantize: str | Quantization | None, calibration: Any) -> Quantization | None:
    """The scheme that is meant, with the calibration data that it needs."""
    if quantize is None:
        if calibration is not None:
            raise RecipeError("calibration is for a quantized file; give quantize='int8' too, or leave it out")
        return None
    if isinstance(quantize, str):
        if quantize != "int8" and quantize not in SCHEMES:
            bits = "; for 4 bits give the scheme WeightOnly(bits=4)" if quantize.endswith("4") else ""
            hint = f"allowed: {', '.join(NAMES)}{bits}"
            raise RecipeError(f"quantize is {quantize!r}; {hint if bits else did_you_mean(quantize, NAMES)}")
        found = SCHEMES.resolve("static" if quantize == "int8" else quantize).parse({})
        assert isinstance(found, Quantization)
        quantize = found
    if quantize.calibrates and calibration is None:
        raise RecipeError(
            f"calibration is missing; {quantize.use} quantization needs a few hundred samples of training or "
            "validation data: calibration=loader, or a tensor"
        )
    return quantize


def _quantize_artifact(
    artifact: Artifact, path: Path, example: Any, scheme: Quantization, calibration: Any, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes an artifact in integers as its task says, with what must ship beside it."""
    task = read_task(artifact)
    side = str(artifact.meta["side"])
    reading = task.reading(side)
    program = reading.programs(load_model(artifact, given=given).module)[MAIN]

    def feed_of(item: Any) -> Mapping[str, np.ndarray]:
        batch = _samples(reading, item) if isinstance(item, Tensor | np.ndarray) else task.from_loader(item)
        return _like("calibration", reading.feed(batch), program.example, program.axes)

    proto = graph(program, opset=Onnx().opset)
    feed = reading.feed(_samples(reading, example))
    assets = {path.with_name(f"{path.stem}.{name}"): text for name, text in reading.assets().items()}
    feeds = _feeds(calibration, feed_of)
    record = _write_quantized(path, scheme, proto, program.module, feed, feeds, outputs=program.outputs, assets=assets)
    if example is None:
        record["verified"]["made_up"] = True
    return {**record, "assets": [str(each) for each in assets]} if assets else record


def _write_quantized(
    path: Path,
    scheme: Quantization,
    proto: Any,
    program: nn.Module,
    feed: Mapping[str, np.ndarray],
    feeds: Feeds | None,
    *,
    outputs: Mapping[str, Port] | None = None,
    assets: Mapping[Path, str] | None = None,
) -> dict[str, Any]:
    """Quantizes a graph, runs the file on `feed` beside the float program, and writes it after its `assets`."""
    found = scheme.quantize(proto, feeds, None)
    inputs = {name: torch.from_numpy(value) for name, value in feed.items()}
    with tempfile.TemporaryDirectory() as folder:
        written = save(found.graph, Path(folder) / FILE)
        verified = against_float(program, open_session(written), [feed], outputs or PLAIN)
        if not np.isfinite(verified["max_abs_diff"]):
            raise IntegrityError(f"{path}: the quantized file answers with numbers that are not finite")
        kernels = audit(written, found.changes)
        for place, text in (assets or {}).items():
            write_whole(place, text)
        write_whole(path, written.read_bytes())
    if kernels.warning():
        warnings.warn(f"{path}: {kernels.warning()}", stacklevel=4)
    return {
        **_record(path, program, {name: value[:1] for name, value in inputs.items()}, verified),
        "float_bytes": proto.ByteSize(),
        "audit": kernels.data(),
        "quantization": quantization_record(scheme, found, {}),
    }


def _feeds(calibration: Any, feed_of: Callable[[Any], Mapping[str, np.ndarray]]) -> Feeds | None:
    """Feeds of the first 256 samples of a tensor, a mapping or a loader; DataError where there are none."""
    if calibration is None:
        return None
    whole = isinstance(calibration, Tensor | np.ndarray | Mapping)
    found: list[Mapping[str, np.ndarray]] = []
    rest = CALIBRATION_SAMPLES
    for item in [calibration] if whole else calibration:
        feed = {name: value[:rest] for name, value in feed_of(item).items()}
        count = len(next(iter(feed.values())))
        found += [feed] if count else []
        rest -= count
        if rest <= 0:
            break
    if not found:
        raise DataError("calibration: the data are empty; give some samples of the training or validation data")
    return lambda: iter(found)


def _named(item: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The inputs of a plain module, by name, in an item of a loader: targets go."""
    if isinstance(item, list | tuple) and len(item):
        item = item[0]
    if isinstance(item, Tensor | np.ndarray) and len(names) == 1:
        item = {names[0]: item}
    if not isinstance(item, Mapping) or not set(names) <= set(item):
        got = ", ".join(map(str, item)) if isinstance(item, Mapping) else type(item).__name__
        raise RecipeError(f"calibration: the model takes {', '.join(names)}, an item gives {got}")
    return {name: torch.as_tensor(item[name]).detach().cpu().numpy() for name in names}


def _samples(reading: Reading, example: Any) -> Batch:
    """The batch to compare on: the user's raw inputs (tensors or arrays), or made-up ones."""
    made_up, side = reading.example(2), reading.reader
    if example is None:
        return Batch({side: made_up if len(made_up) > 1 else next(iter(made_up.values()))})
    feed = dict(example) if isinstance(example, Mapping) else {next(iter(made_up)): example}
    if set(feed) != set(made_up):
        raise RecipeError(f"example: the artifact's task takes {', '.join(made_up)}, not {', '.join(map(str, feed))}")
    feed = {name: torch.as_tensor(value).detach().cpu() for name, value in feed.items()}
    for name, value in feed.items():
        if value.dtype != made_up[name].dtype:
            raise RecipeError(
                f"example: {name} is {value.dtype}, the artifact's task takes raw inputs, {made_up[name].dtype}"
            )
    _like("example", feed, made_up, reading.axes())
    return Batch({side: feed if len(made_up) > 1 else next(iter(feed.values()))})


def _like(
    what: str, feed: Mapping[str, Any], wanted: Mapping[str, Tensor], axes: Mapping[str, Mapping[int, str]]
) -> Mapping[str, Any]:
    """The feed itself; RecipeError where a shape, beside the free axes, or a type is not the one wanted."""
    for name, value in feed.items():
        free = axes.get(name, {})
        shape = [free.get(axis, size) for axis, size in enumerate(wanted[name].shape)]
        given = list(value.shape)
        fits = len(given) == len(shape) and all(isinstance(size, str) or size == own for size, own in zip(shape, given))
        types = [str(each.dtype).removeprefix("torch.") for each in (wanted[name], value)]
        if not fits or types[0] != types[1]:
            told = ", ".join(map(str, shape))
            raise RecipeError(f"{what}: {name} is {types[1]} {given}; the model takes {types[0]} [{told}]")
    return feed


def _within(path: Path, verified: Mapping[str, Any], tolerance: float) -> None:
    if not verified["max_abs_diff"] <= tolerance:
        raise IntegrityError(
            f"{path}: the file differs from torch by {verified['max_abs_diff']:.2g} on the example; tolerance is "
            f"{tolerance:g}. Raise it if that is acceptable, or look at the model"
        )


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
        logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs.logits
        return logits


def _program(model: nn.Module, example: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    if example is None:
        raise RecipeError("example is missing; give one batch of real inputs, example=x")
    feed = dict(example) if isinstance(example, Mapping) else {"input": example}
    for name, value in feed.items():
        if not isinstance(value, Tensor | np.ndarray):
            raise RecipeError(f"example: {name} is a {type(value).__name__}; give a tensor, or a mapping of tensors")
    program, feed = _Plain(model).eval(), {name: torch.as_tensor(each).detach().cpu() for name, each in feed.items()}
    try:
        with torch.no_grad():
            program(**feed)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        given = ", ".join(f"{name} {str(each.dtype)[6:]} {list(each.shape)}" for name, each in feed.items())
        reason = next(iter(str(error).splitlines()), "")[:200]
        raise RecipeError(
            f"example: the model does not run on {given}: {reason}; give a batch of real inputs, the batch axis first"
        ) from error
    return program, feed


def _compared(program: nn.Module, session: FileSession, feed: Mapping[str, Tensor]) -> dict[str, Any]:
    with torch.no_grad():
        expected = program(**feed).double().numpy()
    found = next(iter(session({name: value.numpy() for name, value in feed.items()}).values())).astype(np.float64)
    alike = float((found.argmax(-1) == expected.argmax(-1)).mean())
    return {"max_abs_diff": float(np.abs(found - expected).max()), "agreement": alike, "samples": len(expected)}


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
