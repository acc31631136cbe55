"""Inputs, the half of a task that says what a model reads; Trace, how places of it answer to places of the sample."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from decoct.data.base import Dataset, Split
from decoct.data.remember import Remembered
from decoct.errors import RecipeError
from decoct.models.calls import Postprocessing
from decoct.models.interface import InputKind, Port
from decoct.spec import Spec

STUDENT, TEACHER = "student", "teacher"
READERS = (STUDENT, TEACHER)
"""Readers that every task has; teachers with inputs of their own read under their role."""

_PREPARED: Remembered[nn.Module] = Remembered()


class Trace(NamedTuple):
    """How places of what a model reads answer to places of the sample; None where there is nothing to say.

    `places` int64 `[B, L]`: the place of the sample (word, character) that each position reads, -1 for none; `counts`
    int64 `[B]`: how many places each sample has; `matrix` float32 `[B, 2, 3]`: from (x, y, 1) of the sample to (x, y)
    of the input; `size` int64 `[B, 2]`: height and width of the sample.
    """

    places: Tensor | None = None
    counts: Tensor | None = None
    matrix: Tensor | None = None
    size: Tensor | None = None


class Inputs(Spec):
    """What one model reads of a sample: flat fields of a task, or those of one reader alone.

    `raw`: inputs reach the models as they come (preprocessing is the identity), as a user's own loaders give them.
    """

    kind: ClassVar[InputKind]
    """What a network takes as a whole."""

    mixes_views: ClassVar[bool] = False
    """Whether two samples can be mixed into one view."""

    prepares: ClassVar[bool] = False
    """Whether all that differs between readers is in `preprocessing`, so that one reads what another has read."""

    raw: bool = False

    @abstractmethod
    def resolve_inputs(self, data: Dataset) -> dict[str, Any]:
        """Values of the fields that were left open, from the training split; empty where nothing is."""

    def of(self, reader: str) -> Self:
        """The inputs of one reader: where fields have a short form for the teacher's side, that of this reader."""
        return self

    def rows(self, split: Split) -> Split:
        """The rows that are read of a split's samples: as many, unless a sample gives several (windows) or they are
        packed; then their keys are new and `group` says which sample each belongs to."""
        return split

    @abstractmethod
    def read(self, split: Split, indices: np.ndarray, seeds: np.ndarray | None) -> tuple[Any, Trace | None]:
        """What a model reads of the rows at `indices`, on the CPU, and its trace.

        `seeds` uint64 `[B]`: vary sample i by a generator seeded with `seeds[i]`; None: as it is.
        """

    def seen(self, split: Split, indices: np.ndarray, seeds: np.ndarray | None) -> np.ndarray:
        """uint64 `[B]`: what the samples look like, as `read` gives them, without reading them."""
        return split.keys[indices]

    def reads_as(self, other: Inputs) -> bool:
        """Whether it reads what `other` reads: they are one, or differ in preprocessing alone."""
        if self is other:
            return True
        return self.prepares and type(self) is type(other) and self.variation == other.variation

    @property
    def variation(self) -> dict[str, Any] | None:
        """How samples vary from view to view, as plain data; None where they do not."""
        return None

    @abstractmethod
    def ports(self) -> dict[str, Port]:
        """The inputs of a network, after preprocessing, by name."""

    @property
    def vocabulary(self) -> int | None:
        """How many ids there are, for text."""
        return None

    @property
    def padding(self) -> int | None:
        """The id that fills up short texts."""
        return None

    @abstractmethod
    def preprocessing(self) -> nn.Module:
        """What was read -> what a network takes; runs in training and inside the exported file alike."""

    def prepared(self, inputs: Any) -> Any:
        """What a network takes, from what was read, where that is."""
        if self.raw:
            return inputs
        device = inputs.device
        module = _PREPARED.get(self, device, lambda: self.preprocessing().to(device).eval())
        return module(inputs)

    @abstractmethod
    def program(self, model: nn.Module, postprocessing: Postprocessing | None) -> nn.Module:
        """preprocessing ∘ model ∘ postprocessing with plain tensor inputs by name."""

    @abstractmethod
    def example(self, batch: int = 2) -> dict[str, Tensor]:
        """Made-up inputs of `program`, by name, right in shape and type."""

    def asked(self, info: Mapping[str, Any]) -> dict[str, Any]:
        """How a photo, a text or a row becomes the arrays of an exported file, as plain data; `info` of the data set.

        RecipeError where only the program that trained it can make them.
        """
        raise RecipeError(f"inputs of kind {self.use} cannot be asked for one by one")

    @abstractmethod
    def axes(self) -> Mapping[str, Mapping[int, str]]:
        """Dynamic axes of each input of `program`: `{"image": {0: "batch"}}`."""

    @abstractmethod
    def feed(self, inputs: Any) -> dict[str, np.ndarray]:
        """What an exported file takes, by name, of what was read."""

    def assets(self) -> dict[str, str]:
        """Text files that must ship beside the graph, by name (a tokenizer)."""
        return {}

    @abstractmethod
    def refuse_other(self, reader: str, value: Any) -> None:
        """RecipeError where what a loader gives for a reader is of another kind."""

    @abstractmethod
    def shapes_of(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Values of the fields that say shapes, from what a loader gave, by reader."""


def sizes_of(inputs: Any) -> tuple[int, ...]:
    """The shape of one sample."""
    tensor = inputs["input_ids"] if isinstance(inputs, Mapping) else inputs
    return tuple(tensor.shape[1:])


def refuse_but_tensor(kind: str, reader: str, value: Any) -> None:
    """RecipeError where a loader's inputs are no tensor."""
    if not isinstance(value, Tensor):
        raise _of_another_kind(kind, reader, value, "one tensor")


def refuse_but_ids(reader: str, value: Any) -> None:
    """RecipeError where a loader's inputs are neither a tensor nor a mapping with ids."""
    if not isinstance(value, Tensor) and not (isinstance(value, Mapping) and "input_ids" in value):
        raise _of_another_kind("text", reader, value, "a mapping with input_ids")


def _of_another_kind(kind: str, reader: str, value: Any, expected: str) -> RecipeError:
    what = f"a mapping with {', '.join(map(str, value))}" if isinstance(value, Mapping) else f"a {type(value).__name__}"
    return RecipeError(
        f"the loader's {reader} inputs are {what}; a {kind} task takes {expected}: give the task that they belong to, "
        'as task="text_classification"'
    )


def as_arrays(inputs: Any, name: str) -> dict[str, np.ndarray]:
    """A tensor under the name of its input; a mapping by its own names."""
    if isinstance(inputs, Mapping):
        return {key: each.cpu().numpy() for key, each in inputs.items()}
    return {name: inputs.cpu().numpy()}


def made_up(shape: tuple[int, ...], high: int | None = None) -> Tensor:
    """Normal numbers, or ids below `high`, always the same."""
    generator = torch.Generator().manual_seed(0)
    if high is None:
        return torch.randn(shape, generator=generator)
    return torch.randint(0, high, shape, generator=generator)
