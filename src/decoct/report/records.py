"""The records of a run as typed, tolerant objects: results.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationError

from decoct.artifact import read_json
from decoct.errors import DataError, IntegrityError
from decoct.report.close import ClassFigures, Examples
from decoct.report.fields import Number, Record, Scores, as_list, as_mapping

RESULTS = "results.json"


class Latency(Record):
    """How fast a model answered, and how that was measured."""

    runtime: str = ""
    threads: int | None = None
    batch: int | None = None
    p50_ms: Number = None
    p99_ms: Number = None
    min_ms: Number = None
    mean_ms: Number = None
    repeats: int | None = None
    noisy: bool | None = None
    reason: str | None = None
    throughput_per_s: Number = None

    def comparable(self, other: Latency) -> bool:
        """Whether both were measured in the same way."""
        return (self.runtime, self.threads, self.batch) == (other.runtime, other.threads, other.batch)


class Confusion(Record):
    """`matrix[i][j]` counts samples of class `labels[i]` that were answered with class `labels[j]`."""

    labels: list[str | int | float] = []
    matrix: list[list[float]] = []

    def usable(self) -> bool:
        """Whether the matrix is square, filled and as large as the labels."""
        size = len(self.labels)
        return size > 1 and len(self.matrix) == size and all(len(row) == size for row in self.matrix)


class Seeded(Record):
    """The scores of one seed."""

    seed: int | None = None
    quality: Scores = {}
    fidelity: Scores = {}


class Kernel(Record):
    """A layer of a quantized file as the runtime runs it: int8, weights (integers turned into floats) or float."""

    layer: str = ""
    operator: str = ""
    runs: str = ""
    cause: str = ""


class Kernels(Record):
    """How many layers of a quantized file run so, those in `left` that do not compute in integers, and all `layers`
    where they were recorded; `between` counts the activations computed in float between integer layers."""

    int8: int = 0
    weights: int = 0
    float: int = 0
    between: Annotated[dict[str, int], BeforeValidator(as_mapping)] = {}
    left: Annotated[list[Kernel], BeforeValidator(as_list)] = []
    layers: Annotated[list[Kernel], BeforeValidator(as_list)] = []

    @property
    def total(self) -> int:
        """All layers with weights or products."""
        return self.int8 + self.weights + self.float

    @property
    def outside(self) -> list[Kernel]:
        """The layers that do not compute in integers."""
        return self.left or [each for each in self.layers if each.runs != "int8"]


class Speed(Record):
    """How a file in integers compares with its float file where it was written; `words` say what did not pay."""

    ratio: Number = None
    file_ms: Number = None
    float_ms: Number = None
    words: Annotated[list[str], BeforeValidator(as_list)] = []


class Costs(Record):
    """What a model costs, before or after it was made smaller."""

    parameters: Number = None
    nonzero: Number = None
    macs: Number = None
    file_bytes: Number = None


class LayerChange(Record):
    """What became of one layer; `kind` is the unit of `before` and `after`."""

    path: str = ""
    kind: str = ""
    before: Number = None
    after: Number = None
    note: str = ""


class Sensitivity(Record):
    """Signal-to-noise ratio of the answers when a layer alone computes in integers; the score then."""

    layer: str = ""
    alone_db: Number = None
    alone_score: Number = None


class Budget(Record):
    """What was asked and what was measured."""

    budget: Number = None
    measured: Number = None


class Tried(Record):
    """One try of a search."""

    value: Number = None
    good: bool | None = None
    budgets: Annotated[dict[str, Budget], BeforeValidator(as_mapping)] = {}


class Round(Record):
    """What a round of compression and training ended with."""

    after: Costs = Costs()
    scores: Scores = {}


class Compression(Record):
    """One step that made a model smaller."""

    step: str
    use: str = ""
    path: str = ""
    source: str = ""
    scheme: Annotated[dict[str, Any], BeforeValidator(as_mapping)] = {}
    before: Annotated[Costs, BeforeValidator(as_mapping)] = Costs()
    after: Annotated[Costs, BeforeValidator(as_mapping)] = Costs()
    changes: Annotated[list[LayerChange], BeforeValidator(as_list)] = []
    rounds: Annotated[list[Round], BeforeValidator(as_list)] = []
    quantization: Annotated[dict[str, Any], BeforeValidator(as_mapping)] = {}
    audit: Kernels | None = None
    speed: Annotated[Speed, BeforeValidator(as_mapping)] = Speed()
    sensitivity: Annotated[list[Sensitivity], BeforeValidator(as_list)] = []
    budgets: Annotated[dict[str, Budget], BeforeValidator(as_mapping)] = {}
    verified: Scores = {}
    setting: str = ""
    chosen: Number = None
    tries: Annotated[list[Tried], BeforeValidator(as_list)] = []


class ModelRecord(Record):
    """One model of a run and all that was measured on it."""

    name: str
    step: str = ""
    path: str = ""
    quality: Scores = {}
    quality_sd: Scores = {}
    per_seed: Annotated[list[Seeded], BeforeValidator(as_list)] = []
    split: str = ""
    n: int | None = None
    fidelity: Scores = {}
    calibration: Scores = {}
    parameters: Number = None
    macs: Number = None
    file_bytes: Number = None
    peak_memory_bytes: Number = None
    latency: Latency | None = None
    artifact: str | None = None
    verified: Scores = {}
    confusion: Confusion | None = None
    classes: Annotated[list[ClassFigures], BeforeValidator(as_list)] = []
    source: str = ""
    chain: Annotated[list[str], BeforeValidator(as_list)] = []
    """The steps that it came through, oldest first, its own last."""
    quantized: bool | None = None
    kernels: Annotated[Kernels, BeforeValidator(as_mapping)] = Kernels()
    speed: Annotated[Speed, BeforeValidator(as_mapping)] = Speed()

    @property
    def p50(self) -> float | None:
        """Median latency in milliseconds, where it was measured and is positive."""
        return (self.latency.p50_ms or None) if self.latency else None

    def graded_like(self, other: ModelRecord) -> bool:
        """Whether both were graded on the same samples, as far as is recorded."""
        pairs = ((self.split, other.split), (self.n, other.n))
        return all(not mine or not theirs or mine == theirs for mine, theirs in pairs)

    def measured_like(self, other: ModelRecord) -> bool:
        """Whether the time that both take was measured in the same way."""
        return bool(self.latency and other.latency and self.latency.comparable(other.latency))


class Comparison(Record):
    """Differences `better` - `than`, seed by seed, with the interval of their mean."""

    better: str
    than: str
    metric: str = ""
    differences: Annotated[list[Number], BeforeValidator(as_list)] = []
    mean: Number = None
    low: Number = None
    high: Number = None
    level: float = 0.95
    n: int | None = None


class StepRecord(Record):
    """One step of the recipe as it was run or skipped."""

    name: str
    use: str = ""
    seed: int | None = None
    wall_s: Number = None
    skipped: bool | None = None
    why: str | None = None
    left_out: str | None = None
    """Samples that training left out, and why."""
    stopped: str | None = None
    """Why training ended before its budget."""
    state: str = ""
    """"failed" or "not reached", where the run ended before its end."""


class Failed(Record):
    """The step at which a run ended before its end, and why."""

    step: str = ""
    type: str = ""
    message: str = ""
    exit_code: int | None = None


class HeldRecord(Record):
    """An artifact held against the limits of the run: what was found, and by how much each broken one is broken."""

    step: str
    use: str = ""
    path: str = ""
    artifact: str | None = None
    found: Annotated[dict[str, Number], BeforeValidator(as_mapping)] = {}
    broken: Annotated[dict[str, Number], BeforeValidator(as_mapping)] = {}
    words: Annotated[list[str], BeforeValidator(as_list)] = []


class LimitsRecord(Record):
    """The limits of a run, each artifact of its chain held against them, and the step whose artifact is kept.

    `reference` is the step from whose quality the loss is counted; `nearest` is the step that came nearest where none
    keeps them all.
    """

    asked: Scores = {}
    quantile: Number = None
    metric: str = ""
    reference: str | None = None
    reference_quality: Number = None
    kept: str | None = None
    kept_path: str | None = None
    nearest: str | None = None
    steps: Annotated[list[HeldRecord], BeforeValidator(as_list)] = []

    def held(self, step: str | None) -> HeldRecord | None:
        """What was found of the artifact of a step."""
        return next((each for each in self.steps if each.step == step), None)


class StoreRecord(Record):
    """What a step `label` wrote: a sentence on its size and what compression cost."""

    step: str
    summary: str = ""


class TaskRecord(Record):
    """The task, its main metric and which way of it is better; `item`: what one answer is about."""

    use: str = ""
    metric: str = ""
    direction: str = ""
    item: str = "sample"


class Results(Record):
    """The whole of results.json."""

    decoct: str = ""
    recipe: Annotated[dict[str, Any], BeforeValidator(as_mapping)] = {}
    seed: int | None = None
    seeds: Annotated[list[int], BeforeValidator(as_list)] = []
    device: str = ""
    wall_s: Number = None
    task: TaskRecord = TaskRecord()
    data: Annotated[dict[str, Any], BeforeValidator(as_mapping)] = {}
    models: Annotated[list[ModelRecord], BeforeValidator(as_list)] = []
    comparisons: Annotated[list[Comparison], BeforeValidator(as_list)] = []
    examples: Annotated[Examples, BeforeValidator(as_mapping)] = Examples()
    compressions: Annotated[list[Compression], BeforeValidator(as_list)] = []
    stores: Annotated[list[StoreRecord], BeforeValidator(as_list)] = []
    steps: Annotated[list[StepRecord], BeforeValidator(as_list)] = []
    machine: Annotated[dict[str, Any], BeforeValidator(as_mapping)] = {}
    versions: Annotated[dict[str, Any], BeforeValidator(as_mapping)] = {}
    sealed: str = ""
    """The manifest that vouches for these results; empty where the run wrote none."""
    failed: Failed | None = None
    limits: LimitsRecord | None = None
    unfinished: bool = False
    """Whether the run was stopped, or goes on: then nothing else is told."""

    def model(self, name: str) -> ModelRecord | None:
        """The model of that name."""
        return next((model for model in self.models if model.name == name), None)

    @property
    def metric(self) -> str:
        """The main metric: the task's, or the first that the first model reports."""
        if self.task.metric:
            return self.task.metric
        return next((name for model in self.models for name in model.quality), "")


def as_results(results: Results | Mapping[str, Any]) -> Results:
    """Results from the mapping that results.json holds; IntegrityError names each field that is malformed."""
    if isinstance(results, Results):
        return results
    try:
        return Results.model_validate(results)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[:3]
        wrong = "; ".join(f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in first)
        raise IntegrityError(f"malformed results: {wrong}") from None


def read_results(folder: Path) -> Results:
    """The results of a run's folder; DataError if it holds none, IntegrityError if they are damaged."""
    path = Path(folder) / RESULTS
    try:
        content = read_json(path, dict[str, Any])
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{folder} holds no {RESULTS}; name the folder of a finished run (decoct run RECIPE --out DIR makes one)"
        ) from None
    except IntegrityError as error:
        raise IntegrityError(f"{error}; run the recipe again, finished steps are skipped") from None
    try:
        return as_results(content)
    except IntegrityError as error:
        raise IntegrityError(f"{path}: {error}") from None
