"""What `fit` takes and gives: updates, options, history."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from decoct.errors import RecipeError
from decoct.outputs import Batch
from decoct.training.clock import Clock
from decoct.training.guards import Guard
from decoct.training.processes import ONE, Processes
from decoct.training.stopping import Stopping, Watch

Update = Callable[[Sequence[Batch], Clock], Mapping[str, Tensor]]
"""One accumulation window in, one optimizer step done. Returns what is logged: "loss", and each term by name.

Tensors are logged without being read at each step. The name "finite" is kept for 1.0 or 0.0 on an accelerator: whether
loss and gradients were finite. An update that knows at once raises NonFinite before its optimizer step.
"""

Progress = Callable[[float, float, str], None]


class ManagedUpdate(ABC):
    """An update that also tells its settings to the log and has a state of its own (a loss scale)."""

    @abstractmethod
    def __call__(self, window: Sequence[Batch], clock: Clock) -> Mapping[str, Tensor]:
        """One optimizer step."""

    @abstractmethod
    def settings(self, clock: Clock) -> dict[str, Any]:
        """`{"weights": {term: weight now}, "lr": learning rate now}`."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What must be checkpointed beside the parts of the State."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back."""


@dataclass(frozen=True)
class Options:
    """How `fit` goes about it.

    `accumulate` batches an optimizer step; `select` the score by which the best student weights are kept;
    `validate_every` steps between validations inside an epoch (None: a fifth of the run where the run is shorter than
    an epoch, else only at the ends of epochs); `guard` None lets non-finite numbers pass; `progress` takes (done,
    total, text) at most ten times a second, with the last loss and the last score called `metric`; `notes` are records
    with which a new log begins; `processes` train together: the first writes log and checkpoints, and decides where
    clocks and signals do; `stop` ends training by a validation score; `watch` sees each record, and may end it too.
    """

    accumulate: int = 1
    select: tuple[str, Literal["max", "min"]] | None = None
    log_every: int = 10
    checkpoint_seconds: float = 30.0
    validate_every: int | None = None
    guard: Guard | None = field(default_factory=Guard)
    progress: Progress | None = None
    notes: tuple[Mapping[str, Any], ...] = ()
    processes: Processes = ONE
    metric: str | None = None
    stop: Stopping | None = None
    watch: Watch | None = None

    def __post_init__(self) -> None:
        for name in ("accumulate", "log_every", "validate_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"{name} is {value}; allowed: 1 and more")
        if self.select is not None and self.select[1] not in ("max", "min"):
            raise RecipeError(f"select is {self.select}; write (score, 'max') or (score, 'min')")


@dataclass(frozen=True)
class History:
    """What happened: `records` as in log.jsonl; `best` scores and their step, where `select` was given; optimizer
    `steps` done; `resumed_from` the step of the checkpoint that the run went on from; `left_out` what is wrong with
    samples that were left out, by key; `stopped` why training ended before its budget, empty where it did not."""

    records: list[dict[str, Any]]
    steps: int
    best: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None
    resumed_from: int | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    stopped: str = ""
