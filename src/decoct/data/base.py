"""Data, the Spec of a data set; Split and Dataset, what it opens; Source, which draws batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from decoct.spec import Spec

if TYPE_CHECKING:
    from decoct.outputs import Batch


@dataclass(frozen=True)
class Split:
    """Samples by column, all of one length.

    Columns by convention: `image` uint8 `[N, H, W, C]` (or a list of arrays), `text` list of str, `features`
    float64 `[N, F]` (NaN = missing), `label` int64 `[N]`, `value` float64 `[N]` or `[N, D]`, `mask` uint8 `[N, H, W]`:
    the class of each pixel, 255 for none.
    `keys` uint64 `[N]`: the first 8 bytes of the SHA-256 of each sample's content without its target.
    `labelled` bool `[N]`: where the target may be used in training; None = everywhere. `group` uint64 `[N]`: of rows
    that were made from samples (windows) the key of the sample.
    """

    columns: Mapping[str, Any]
    keys: np.ndarray
    labelled: np.ndarray | None = None
    group: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, indices: np.ndarray) -> Split:
        """The samples at `indices`, in their order."""
        columns = {
            name: column[indices] if isinstance(column, np.ndarray) else [column[i] for i in indices]
            for name, column in self.columns.items()
        }
        labelled = None if self.labelled is None else self.labelled[indices]
        group = None if self.group is None else self.group[indices]
        return Split(columns, self.keys[indices], labelled, group)


@dataclass(frozen=True)
class Dataset:
    """An opened data set: `splits` "train", "validation", "test"; `classes` names (empty for regression);
    `features` names of tabular columns; `fingerprint` SHA-256 over all splits."""

    splits: Mapping[str, Split]
    fingerprint: str
    classes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)


class Data(Spec):
    """A data set: where it is and how it is split.

    `path`: the folder or file on disk; without it the canonical loader downloads (unless offline).
    `validation`: the fraction of the training samples held out (by key, so that it never changes) where the set has
    no validation split of its own. `labels`: how many training samples keep their label, drawn evenly over classes;
    the others stay as unlabelled samples. `limit`: at most this many samples of each split, for a quick look.
    """

    path: Path | None = None
    validation: float = Field(default=0.1, ge=0, lt=1)
    labels: int | None = Field(default=None, ge=1)
    limit: int | None = Field(default=None, ge=1)

    @abstractmethod
    def open(self, *, offline: bool = False) -> Dataset:
        """Reads the data set; DataError says how to get it where it is absent."""


class Source(ABC):
    """An iterable of batches that can be put back to where it was.

    Iterating yields what is left of the current epoch and then moves to the next. The order and the views of epoch e
    depend on the seed, e and the samples' keys alone. `state_dict` after any batch, loaded into a fresh Source,
    yields exactly the batches that would have followed.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Batches in one epoch."""

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]:
        """What is left of the current epoch."""

    @abstractmethod
    def state_dict(self) -> dict[str, int]:
        """`{"epoch": ..., "batch": ...}`: batches consumed."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes to a position; the next iteration starts there."""
