"""Trackers of experiments: TensorBoard, Weights & Biases, MLflow and Trackio, as watchers of a run.

Each writes below the run's folder and sends nothing by itself: where a user's own setting (WANDB_MODE,
MLFLOW_TRACKING_URI) says otherwise that holds, unless the run is offline.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from decoct.errors import RecipeError, did_you_mean
from decoct.models.checks import require
from decoct.network import is_offline

if TYPE_CHECKING:
    from decoct.runner.watching import Event

FOLDER = "tracking"
"""Where in a run's folder the trackers write."""
PROJECT = "decoct"


class Tracker(ABC):
    """One run in one tracker. Numbers come by step of the recipe (`student/loss`, `student/validation/accuracy`)."""

    name: ClassVar[str]
    package: ClassVar[str]
    folder_in: ClassVar[str] = ""
    """The variable from which the library reads its folder while it is imported; a value that the user gave stays."""

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any]) -> None:
        """`folder` is this tracker's own, `run` what the run is called, `settings` are those of the recipe, flat."""

    @abstractmethod
    def numbers(self, step: str, at: int, values: Mapping[str, float]) -> None:
        """Numbers of a recipe's `step` after so many optimizer steps."""

    @abstractmethod
    def summary(self, values: Mapping[str, float]) -> None:
        """Numbers that are known once."""

    @abstractmethod
    def close(self, *, failed: bool) -> None:
        """Ends the run."""


class Tensorboard(Tracker):
    """Event files for TensorBoard: `tensorboard --logdir RUN/tracking/tensorboard`."""

    name = "tensorboard"
    package = "tensorboard"

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))
        self.last = 0
        rows = "\n".join(f"    {name}: {value}" for name, value in settings.items())
        self.writer.add_text("recipe", f"{run}\n\n{rows}")

    def numbers(self, step: str, at: int, values: Mapping[str, float]) -> None:
        self.last = at
        for name, value in values.items():
            self.writer.add_scalar(f"{step}/{name}", value, at)

    def summary(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, self.last)
        self.writer.flush()

    def close(self, *, failed: bool) -> None:
        self.writer.close()


class Wandb(Tracker):
    """Weights & Biases, offline by default: `wandb sync RUN/tracking/wandb/wandb/offline-*` sends it where wanted."""

    name = "wandb"
    package = "wandb"

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any]) -> None:
        wandb = require("wandb", "wandb")
        folder.mkdir(parents=True, exist_ok=True)
        mode = "offline" if is_offline() else os.environ.get("WANDB_MODE") or "offline"
        quiet = wandb.Settings(console="off", silent=True)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=run,
            dir=str(folder),
            mode=mode,
            config=dict(settings),
            settings=quiet,
        )
        self.known: set[str] = set()

    def numbers(self, step: str, at: int, values: Mapping[str, float]) -> None:
        count = f"{step}/step"
        if step not in self.known:
            self.known.add(step)
            self.run.define_metric(f"{step}/*", step_metric=count)
        self.run.log({count: at, **{f"{step}/{name}": value for name, value in values.items()}})

    def summary(self, values: Mapping[str, float]) -> None:
        self.run.summary.update(dict(values))

    def close(self, *, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class Mlflow(Tracker):
    """MLflow, in files below the run: `mlflow ui --backend-store-uri RUN/tracking/mlflow`."""

    name = "mlflow"
    package = "mlflow"

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any]) -> None:
        mlflow = require("mlflow", "mlflow")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        elsewhere = "" if is_offline() else os.environ.get("MLFLOW_TRACKING_URI", "")
        self.entities = mlflow.entities
        self.client = mlflow.MlflowClient(tracking_uri=elsewhere or folder.resolve().as_uri())
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        known = self.client.get_experiment_by_name(name)
        experiment = known.experiment_id if known is not None else self.client.create_experiment(name)
        self.run: str = self.client.create_run(experiment, run_name=run).info.run_id
        self.last = 0
        items = [self.entities.Param(_param(key), str(value)[:500]) for key, value in settings.items()]
        for start in range(0, len(items), 100):
            self.client.log_batch(self.run, params=items[start : start + 100])

    def numbers(self, step: str, at: int, values: Mapping[str, float]) -> None:
        self.last = at
        self._log({f"{step}/{name}": value for name, value in values.items()}, at)

    def summary(self, values: Mapping[str, float]) -> None:
        self._log(values, self.last)

    def _log(self, values: Mapping[str, float], at: int) -> None:
        now = round(1000 * time.time())
        self.client.log_batch(self.run, metrics=[self.entities.Metric(k, v, now, at) for k, v in values.items()])

    def close(self, *, failed: bool) -> None:
        self.client.set_terminated(self.run, "FAILED" if failed else "FINISHED")


class Trackio(Tracker):
    """Trackio, in a database below the run: `TRACKIO_DIR=RUN/tracking/trackio trackio show --project decoct`."""

    name = "trackio"
    package = "trackio"
    folder_in = "TRACKIO_DIR"

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any]) -> None:
        trackio = require("trackio", "trackio")
        with contextlib.redirect_stdout(None):
            self.run = trackio.init(
                project=PROJECT, name=run, config=dict(settings), embed=False, auto_log_gpu=False, auto_log_cpu=False
            )
        self.finish = trackio.finish
        self.last = 0

    def numbers(self, step: str, at: int, values: Mapping[str, float]) -> None:
        self.last = at
        self.run.log({f"{step}/{name}": value for name, value in values.items()}, step=at)

    def summary(self, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=self.last)

    def close(self, *, failed: bool) -> None:
        with contextlib.redirect_stdout(None):
            self.finish()


TRACKERS: dict[str, type[Tracker]] = {each.name: each for each in (Tensorboard, Wandb, Mlflow, Trackio)}


class Tracking:
    """A tracker as a watcher; what it raises is said once, and then it is left alone: no run ends by it."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.working = True

    def __call__(self, event: Event) -> None:
        """Writes down records of training, what a step ended with, and what the run measured."""
        if not self.working:
            return
        try:
            self._take(event)
        except Exception as error:
            self._gave_up(error)

    def close(self, *, failed: bool) -> None:
        """Ends the run in the tracker."""
        try:
            self.tracker.close(failed=failed)
        except Exception as error:
            if self.working:
                self._gave_up(error)

    def _take(self, event: Event) -> None:
        kind = event["event"]
        if kind == "record":
            record = event["record"]
            values = numbers_of(record)
            if values:
                self.tracker.numbers(place_of(event), int(record["step"]), values)
        elif kind == "done":
            at = place_of(event)
            self.tracker.summary(
                {f"{at}/final/{name}": value for name, value in event.get("scores", {}).items() if _sound(value)}
                | {f"{at}/{name}": event[name] for name in ("wall_s", "file_bytes") if _sound(event.get(name))}
            )
        elif kind == "finished":
            self.tracker.summary(measures_of(event["results"]))

    def _gave_up(self, error: Exception) -> None:
        self.working = False
        message = " ".join(str(error).split())
        warnings.warn(
            f"--track {self.tracker.name} failed and is left alone from here on ({type(error).__name__}: {message}); "
            "the run goes on",
            stacklevel=4,
        )


@contextlib.contextmanager
def tracked(names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> Iterator[list[Tracking]]:
    """The trackers of these names, at work on the run in `folder` while the body runs.

    RecipeError for another name, ResourceError names the extra of one that is not installed.
    """
    known = {name: TRACKERS[name] for name in names if name in TRACKERS}
    for name in names:
        if name not in TRACKERS:
            raise RecipeError(f"track is {name!r}; {did_you_mean(name, TRACKERS)}")
        if TRACKERS[name].folder_in:
            os.environ.setdefault(TRACKERS[name].folder_in, str((folder / FOLDER / name).resolve()))
        require(TRACKERS[name].package, name)
    found: list[Tracking] = []
    flat = dict(flattened(settings))
    for name, kind in known.items():
        try:
            found.append(Tracking(kind(folder / FOLDER / name, folder.resolve().name, flat)))
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            warnings.warn(f"--track {name} could not begin ({told}); the run goes on", stacklevel=3)
    failed = True
    try:
        yield found
        failed = False
    finally:
        for each in found:
            each.close(failed=failed)


def place_of(event: Event) -> str:
    """The recipe's step that an event is of, its seed where it is not 0, and the step inside it.

    >>> place_of({"step": "student", "seed": 1, "inside": "student-1"})
    'student.seed1/student-1'
    """
    seed = f".seed{event['seed']}" if event.get("seed") else ""
    return "/".join(filter(None, (f"{event['step']}{seed}", event.get("inside", ""))))


def numbers_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of the log by name; None and what is not finite are left out.

    >>> numbers_of({"kind": "train", "loss": 2.0, "terms": {"kd": 1.5}, "weights": {"kd": 0.9}, "lr": None})
    {'loss': 2.0, 'terms/kd': 1.5, 'weights/kd': 0.9}
    """
    if record["kind"] == "validation":
        found = {f"validation/{name}": value for name, value in record["scores"].items()}
    else:
        found = {"loss": record.get("loss"), "lr": record.get("lr")}
        for place in ("terms", "weights"):
            found |= {f"{place}/{name}": value for name, value in record.get(place, {}).items()}
    return {name: float(value) for name, value in found.items() if _sound(value)}


def measures_of(results: Mapping[str, Any]) -> dict[str, float]:
    """What results.json says of each model: quality, fidelity, size, latency."""
    found: dict[str, float] = {}
    for model in results.get("models", []):
        at = f"models/{model['name']}"
        for group in ("quality", "fidelity"):
            found |= {f"{at}/{name}": value for name, value in model.get(group, {}).items() if _sound(value)}
        latency = {f"latency_{name}": (model.get("latency") or {}).get(name) for name in ("p50_ms", "p99_ms")}
        costs = {name: model.get(name) for name in ("file_bytes", "parameters", "macs", "peak_memory_bytes")}
        found |= {f"{at}/{name}": float(each) for name, each in {**costs, **latency}.items() if _sound(each)}
    return found


def flattened(settings: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted name.

    >>> dict(flattened({"seed": 0, "steps": [{"use": "train"}]}))
    {'seed': 0, 'steps.0.use': 'train'}
    """
    for key, value in settings.items():
        name = f"{at}.{key}" if at else str(key)
        if isinstance(value, list | tuple):
            value = {str(i): each for i, each in enumerate(value)}
        if isinstance(value, Mapping):
            yield from flattened(value, name)
        else:
            yield name, value


def _sound(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value == value and abs(value) != float("inf")


def _param(name: str) -> str:
    """A name as MLflow takes it."""
    return "".join(each if each.isalnum() or each in "_-. /" else "_" for each in name)[:250]
