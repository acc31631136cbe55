"""Task, the Spec that knows one kind of problem and nothing of methods."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from decoct.data.base import Dataset, Split
from decoct.models.base import Interface
from decoct.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from decoct.outputs import Batch, Needs, Outputs, Predictor

Side = str
"""Whose inputs: "student" or "teacher"; both see the same sample, each through its own preprocessing."""


class Task(Spec):
    """One kind of problem.

    As written in a recipe a Task may leave open what the data decide (normalisation, classes, vocabulary);
    `resolve` returns the Task with all of it filled in, still plain data, and that one is saved with each artifact.
    All methods below `resolve` are for resolved Tasks.
    """

    output: ClassVar[str] = "logits"
    """The name of `program`'s output: "logits", or "values" where it is a number in its own units."""

    @abstractmethod
    def resolve(self, data: Dataset) -> Self:
        """Fills in from the training split what was left open; a resolved Task resolves to itself."""

    @abstractmethod
    def interface(self, side: Side) -> Interface:
        """What a model of this side takes and gives."""

    @abstractmethod
    def collate(self, split: Split, indices: np.ndarray, *, seeds: np.ndarray | None = None, view: int = 0) -> Batch:
        """The batch of the samples at `indices`, with raw inputs for every side, on the CPU.

        `seeds` uint64 `[B]`: augment sample i by a generator seeded with `seeds[i]` (the same pixels for all sides);
        None: no augmentation.
        """

    @abstractmethod
    def from_loader(self, item: Any) -> Batch:
        """The batch that an item of a user's loader stands for.

        `(inputs, target)`, `(student_inputs, teacher_inputs, target)`, a mapping with the target under `target`,
        `label` or `labels`, or inputs alone, which are unlabelled. RecipeError says what else came.
        """

    @abstractmethod
    def target_of(self, value: Any) -> Tensor:
        """A target in its own units (class ids, numbers) as `loss` takes it, and as logits are compared with it."""

    @abstractmethod
    def shaped_by(self, batch: Batch, outputs: int) -> Self:
        """The Task of `raw: true` with its shapes taken from a batch, and from the width of a model's logits.

        `interface` and `example` need them. Where class names are open they become "0", "1", and so on.
        """

    @abstractmethod
    def preprocessing(self, side: Side) -> nn.Module:
        """Raw inputs of that side -> what its model takes; runs in training and inside the exported file alike."""

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch, needs: Needs, side: Side) -> Outputs:
        """Runs `preprocessing(side)` and `model` on the batch and captures `needs.features`."""

    @abstractmethod
    def outputs(self, raw: Any) -> Outputs:
        """Outputs from what a model returned (a tensor, an object with `.logits`)."""

    @abstractmethod
    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """The supervised loss, mean over the labelled items of the batch (0 with gradient where there are none)."""

    @abstractmethod
    def items(self, batch: Batch) -> Tensor | int:
        """How many items `loss` averages over, known before any forward pass."""

    @abstractmethod
    def score(self, predict: Predictor, batches: Iterable[Batch]) -> dict[str, float]:
        """Metrics over batches in float64, the main one first."""

    @property
    @abstractmethod
    def metric(self) -> tuple[str, Literal["max", "min"]]:
        """The main metric and whether more or less of it is better."""

    @abstractmethod
    def fidelity(self, predict: Predictor, teacher: Predictor, batches: Iterable[Batch]) -> dict[str, float]:
        """How near one predictor is to another: agreement and KL for classes, RMSE between predictions for numbers."""

    @abstractmethod
    def program(self, model: nn.Module, side: Side) -> nn.Module:
        """preprocessing ∘ model ∘ postprocessing with plain tensor inputs named `input_names`, one output `logits`
        (`values` for regression); this is what is exported."""

    @abstractmethod
    def example(self, side: Side, batch: int = 2) -> dict[str, Tensor]:
        """Raw inputs of `program`, by name, of `batch` samples (made up, right in shape and type)."""

    @abstractmethod
    def feed(self, batch: Batch, side: Side) -> dict[str, np.ndarray]:
        """What an exported file takes for this batch, by input name."""

    @abstractmethod
    def axes(self, side: Side) -> Mapping[str, Mapping[int, str]]:
        """Dynamic axes of each input: `{"image": {0: "batch"}}`."""

    def assets(self, side: Side) -> dict[str, str]:
        """Text files that must ship beside the graph, by name (a tokenizer); none by default."""
        return {}


Forward = Callable[["nn.Module", "Batch", "Needs", Side], "Outputs"]
