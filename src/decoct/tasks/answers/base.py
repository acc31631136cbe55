"""Answer, the half of a task that says what a model answers; Tally, which scores it batch by batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from decoct.data.base import Dataset, Split
from decoct.errors import DataError, RecipeError
from decoct.models.calls import Postprocessing
from decoct.models.interface import Port
from decoct.outputs import DENSE, Batch, Needs, Outputs, Predictor
from decoct.spec import Spec
from decoct.store.codecs.base import Codec
from decoct.tasks.answers.details import Details
from decoct.tasks.inputs.base import Inputs, Trace

Over = Literal["items", "labelled"]
"""What a term averages over: all places at which a model answers, or those whose target counts."""
Traces = Mapping[str, Trace | None]
IGNORED = -100
"""The class id of an item whose label must not be used."""


@dataclass(frozen=True)
class Scores:
    """What a tally found, in float64.

    `quality`: metrics, the main one first; `fidelity` to the reference, where there was one; `per_class` the main
    figure of each class by name; `confusion`: names, and int64 `[C, C]`, rows the labels, columns what was answered.
    """

    quality: dict[str, float]
    fidelity: dict[str, float] = field(default_factory=dict)
    per_class: dict[str, float] = field(default_factory=dict)
    confusion: tuple[tuple[str, ...], np.ndarray] | None = None


class Tally(ABC):
    """Scores of one predictor in one pass, one batch in memory: what is kept does not grow with what a model says of a
    sample, as far as the metric allows."""

    @abstractmethod
    def add(self, batch: Batch, raw: Outputs, reference: Outputs | None = None) -> None:
        """Counts what was said about a batch, and how near it is to what the reference said."""

    @abstractmethod
    def scores(self) -> Scores:
        """All figures; DataError where nothing was counted."""


class Answer(Spec):
    """What one head of a model answers: flat fields of a task, or those of the head alone."""

    distribution: ClassVar[bool] = True
    """Whether logits are a distribution over classes; else they are numbers."""
    numbers: ClassVar[bool] = False
    """Whether logits are predicted numbers, with a target of their shape."""
    scaled: ClassVar[bool] = False
    """Whether the scale of the target comes from all labelled samples of the data."""
    mixes_targets: ClassVar[bool] = False
    """Whether the targets of two samples can be mixed into one."""
    per_pixel: ClassVar[bool] = False
    """Whether networks give maps `[B, classes, h, w]`, of which each pixel is answered."""
    target_columns: ClassVar[tuple[str, ...]] = ()
    """The columns of a split that may hold the target."""
    combines: ClassVar[bool] = True
    """Whether what several teachers say, or one of several views, can be put together as one answer."""
    item: ClassVar[str] = "sample"
    """What one answer is about: a sample, or one of the places in it."""

    @property
    def parts(self) -> Mapping[str, Answer]:
        """The answers of the heads, by name; empty where there is one answer."""
        return {}

    @property
    @abstractmethod
    def metric(self) -> tuple[str, Literal["max", "min"]]:
        """The main metric and whether more or less of it is better."""

    @property
    def metrics(self) -> Mapping[str, Literal["max", "min"]]:
        """Every score of `quality` and which way of it is better, the main one first; some need data that hold them."""
        name, better = self.metric
        return {name: better}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes by which teachers with others are matched; empty where there are none."""
        return ()

    def renamed(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Values of the fields under which a teacher answers that knows the classes `names`."""
        return {}

    @abstractmethod
    def resolve_answer(self, data: Dataset, inputs: Inputs) -> dict[str, Any]:
        """Values of the fields that were left open, from the training split; empty where nothing is."""

    @abstractmethod
    def gives(self, inputs: Inputs) -> dict[str, Port]:
        """What a network gives, by name."""

    def shipped(self, inputs: Inputs) -> dict[str, Port]:
        """What an exported program gives, by name, in order; by default as the network."""
        return self.gives(inputs)

    def postprocessing(self) -> Postprocessing | None:
        """What a network returned -> what the program gives; None: its logits as they are."""
        return None

    def meaning(self, inputs: Inputs, info: Mapping[str, Any]) -> dict[str, Any]:
        """What the numbers of an exported file mean, as plain data. RecipeError where nobody can be told in a line."""
        raise RecipeError(f"answers of kind {self.use} cannot be asked for one by one")

    def has_target(self, split: Split) -> bool:
        """Whether a split has targets at all."""
        return any(name in split.columns for name in self.target_columns)

    def known(self, split: Split, indices: np.ndarray) -> Any:
        """Bool `[B]`: which of the samples at `indices` have a target that may be used; None for all of them."""
        if not self.has_target(split):
            return torch.zeros(len(indices), dtype=torch.bool)
        return None if split.labelled is None else torch.from_numpy(split.labelled[indices])

    def head(self, name: str) -> Answer:
        """What one head answers; a network's own (early exits, say) answer as it does."""
        return self

    @abstractmethod
    def target(self, split: Split, indices: np.ndarray, traces: Traces) -> Any:
        """The target of the samples at `indices` as `loss` takes it, marked where it must not be used; `traces` by
        reader, for targets that move with the input."""

    @abstractmethod
    def given(self, value: Any) -> Any:
        """A target in its own units (class ids, numbers) as `loss` takes it, from a user's loader or a file."""

    @abstractmethod
    def missing(self, count: int) -> Any:
        """The target of `count` samples without labels."""

    @abstractmethod
    def outputs(self, raw: Outputs, batch: Batch, reader: str) -> Outputs:
        """What a network said, at the answer's places (pieces to words, frames to labels), its shape checked."""

    @abstractmethod
    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """The supervised loss, mean over the labelled items of the batch (0 with gradient where there are none)."""

    @property
    def needs(self) -> Needs:
        """What `loss` reads of a model; `losses` where the model computes them itself, from `model_target`."""
        return DENSE

    @abstractmethod
    def kept(self, batch: Batch, over: Over, reader: str = "student") -> Tensor | None:
        """Bool `[*B]`: which items count, known before any forward pass; None: all do.

        What says so here is the mask of the terms and what they are counted by.
        """

    @abstractmethod
    def labelled(self, batch: Batch) -> Tensor:
        """Bool `[*B]`: which items have a target that `loss` counts."""

    def items(self, batch: Batch) -> Tensor | int:
        """How many items `loss` averages over."""
        return self.labelled(batch).sum()

    def hard_target(self, batch: Batch) -> Tensor | None:
        """Class ids `[*B]`, -100 where none counts, where `loss` is the mean of −log q of them; None by default."""
        return None

    def length(self, batch: Batch) -> int | None:
        """How many places answers about this batch are padded to; None where all samples have as many."""
        return None

    def places_in(self, split: Split) -> float:
        """How many places a sample of a split is answered at, in the mean."""
        return 1.0

    @abstractmethod
    def zeros(self, batch: Batch) -> Outputs:
        """Made-up outputs for a batch, right in shape, as of a model that knows nothing."""

    def model_target(self, batch: Batch, reader: str) -> Any:
        """What a network takes as target that computes losses itself; by default the target as it is."""
        return batch.target

    def mixed(self, own: Batch, other: Batch, share: Tensor) -> Any:
        """The target of samples that were mixed with others, `share` `[B]` of each its own; refused by default."""
        raise RecipeError("mix: answers of this task cannot be mixed; leave mix out")

    def codec(self, keep: Codec) -> Codec:
        """How a store keeps such answers, where `keep` is what was asked for."""
        return keep

    def details(self) -> Details | None:
        """Looks closer at one model than a tally: at classes, and at samples on which two models differ; None where
        there is no way to."""
        return None

    @abstractmethod
    def from_file(self, arrays: Mapping[str, Tensor], batch: Batch, reader: str) -> Outputs:
        """What an exported file said, by the names of `shipped`, as Outputs."""

    @abstractmethod
    def tally(self) -> Tally:
        """A fresh tally."""

    def shapes_of(self, target: Any) -> dict[str, Any]:
        """Values of the fields that say shapes, from a loader's target, for tasks whose inputs are raw."""
        return {}

    def widths_of(self, width: int) -> dict[str, Any]:
        """Values of the fields that are open, from the width of a model's logits, for tasks whose inputs are raw."""
        return {}


def tallied(answer: Answer, predict: Predictor, batches: Iterable[Batch], reference: Predictor | None = None) -> Scores:
    """The scores of a predictor over batches, and its fidelity to a reference."""
    tally = answer.tally()
    seen = False
    with torch.no_grad():
        for batch in batches:
            seen = True
            tally.add(batch, predict(batch), None if reference is None else reference(batch))
    if not seen:
        raise DataError("there is no batch to score on")
    return tally.scores()


def dense(raw: Outputs) -> np.ndarray:
    """Logits in float64 on the CPU; RecipeError where a predictor gives none."""
    if raw.logits is None:
        raise RecipeError("the predictor gives no logits")
    found: np.ndarray = raw.logits.detach().cpu().double().numpy()
    return found


def in_loss_type(logits: Tensor) -> Tensor:
    """float32 at least."""
    return logits if logits.dtype == torch.float64 else logits.float()
