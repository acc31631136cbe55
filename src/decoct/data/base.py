"""Data, the Spec of a data set; Split and Dataset, what it opens; Source, which draws batches."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field, field_validator

from decoct.data.lazy import LazyColumn
from decoct.data.mapped import chosen, taken
from decoct.data.stored_texts import StoredTexts
from decoct.errors import DataError, did_you_mean
from decoct.spec import Spec

if TYPE_CHECKING:
    from decoct.outputs import Batch


@dataclass(frozen=True)
class Split:
    """Samples by column, all of one length.

    Columns by convention: `image` uint8 `[N, H, W, C]` (an array, a LazyColumn, or a list of arrays), `text` list of
    str, `features` float64 `[N, F]` (NaN = missing), `label` int64 `[N]`, `value` float64 `[N]` or `[N, D]`, `mask`
    uint8 `[N, H, W]`: the class of each pixel, 255 for none.
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
        columns = {name: _taken(column, indices) for name, column in self.columns.items()}
        labelled = None if self.labelled is None else taken(self.labelled, indices)
        group = None if self.group is None else taken(self.group, indices)
        return Split(columns, taken(self.keys, indices), labelled, group)

    def where(self, mask: np.ndarray) -> Split:
        """The samples where `mask`, bool `[N]`, is true, in their order.

        >>> Split({"text": ["a", "b"]}, np.arange(2, dtype=np.uint64)).where(np.array([False, True])).columns
        {'text': ['b']}
        """
        columns = {name: _chosen(column, mask) for name, column in self.columns.items()}
        labelled = None if self.labelled is None else chosen(self.labelled, mask)
        group = None if self.group is None else chosen(self.group, mask)
        return Split(columns, chosen(self.keys, mask), labelled, group)


def _taken(column: Any, indices: np.ndarray) -> Any:
    if isinstance(column, LazyColumn | StoredTexts):
        return column.take(indices)
    return taken(column, indices) if isinstance(column, np.ndarray) else [column[i] for i in indices]


def _chosen(column: Any, mask: np.ndarray) -> Any:
    if isinstance(column, StoredTexts):
        return column.where(mask)
    return chosen(column, mask) if isinstance(column, np.ndarray) else _taken(column, np.flatnonzero(mask))


@dataclass(frozen=True)
class Dataset:
    """An opened data set: `splits` "train", "validation", "test"; `classes` names (empty for regression);
    `features` names of tabular columns; `fingerprint` SHA-256 over all splits."""

    splits: Mapping[str, Split]
    fingerprint: str
    classes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)
    index: Path | None = field(default=None, compare=False)
    """Where the index keeps it."""
    remembered: bool = field(default=False, compare=False)
    """Whether it is the index's word alone: its files look as they did and were not read again."""

    def narrowed(self, indices: np.ndarray, split: str = "train") -> Dataset:
        """The same data with the samples at `indices` (int64 `[N]`) of one split: a fold, a partition, a site.

        Its fingerprint is its own, SHA-256 over this one's, the name of the split and the indices. DataError where the
        split is none that decoct reads, or an index lies outside it.

        >>> split = Split({"text": ["a", "b", "c"]}, np.arange(3, dtype=np.uint64))
        >>> Dataset({"train": split}, "f").narrowed(np.array([2, 0])).splits["train"].columns
        {'text': ['c', 'a']}
        """
        if split not in self.splits:
            raise DataError(f"the data cannot be narrowed in split {split!r}; {did_you_mean(split, self.splits)}")
        places = np.asarray(indices)
        size = len(self.splits[split])
        if places.ndim != 1 or not np.issubdtype(places.dtype, np.integer):
            raise DataError(f"indices are {places.dtype} {list(places.shape)}; give whole numbers, one a sample")
        if len(places) and not (places.min() >= 0 and places.max() < size):
            raise DataError(f"indices go from {places.min()} to {places.max()}; the {split} split has 0 to {size - 1}")
        state = hashlib.sha256(f"{self.fingerprint} {split} ".encode() + places.astype("<i8").tobytes())
        splits = {**self.splits, split: self.splits[split].take(places)}
        return replace(self, splits=splits, fingerprint=state.hexdigest(), index=None)


class Data(Spec):
    """A data set: where it is and how it is split.

    `path`: the folder or file on disk; without it the canonical loader downloads (unless offline).
    `validation`: the fraction of the training samples held out (by key, so that it never changes) where the set has
    no validation split of its own. `labels`: how many training samples keep their label, drawn evenly over classes;
    the others stay as unlabelled samples. `limit`: at most this many samples of each split, for a quick look.
    """

    reads_files: ClassVar[bool] = True
    """Whether there are files that `path` may name."""

    path: Path | None = None
    validation: float = Field(default=0.1, ge=0, lt=1)
    labels: int | None = Field(default=None, ge=1)
    limit: int | None = Field(default=None, ge=1)

    @field_validator("path")
    @classmethod
    def _names_files(cls, path: Path | None) -> Path | None:
        if path is not None and not cls.reads_files:
            raise ValueError(f"path is {str(path)!r}, and {cls.use} has no files that it could name; leave it out")
        return path

    @abstractmethod
    def open(self, *, offline: bool = False) -> Dataset:
        """Reads the data set; DataError says how to get it where it is absent."""

    def files(self) -> list[str] | None:
        """Every file that `open` reads, for the index; None where it must be opened to know."""
        return None


class Source(ABC):
    """An iterable of batches that can be put back to where it was.

    Iterating yields what is left of the current epoch and then moves to the next. The order and the views of epoch e
    depend on the seed, e and the samples' keys alone. `state_dict` after any batch, loaded into a fresh Source,
    yields exactly the batches that would have followed; after the last batch of an epoch of which nobody knew the
    length, first the end of that epoch.

    `fixed`: whether its batches hang on nothing that is trained meanwhile; of one that is not, none is drawn before it
    is needed, or a resumed run would see others.
    """

    fixed: bool = True

    @property
    @abstractmethod
    def length(self) -> int | None:
        """Batches in one epoch; None where nobody knows, or there is no end."""

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]:
        """What is left of the current epoch."""

    @abstractmethod
    def state_dict(self) -> Mapping[str, Any]:
        """Where it stands, as `{"epoch": ..., "batch": ...}`: batches consumed."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to a position; the next iteration starts there."""
