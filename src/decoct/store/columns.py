"""Columns of a store: tensors of one shape a sample, and ragged ones that are kept without their padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decoct.errors import DataError, IntegrityError

DTYPES = {
    str(each).removeprefix("torch."): each
    for each in (
        *(torch.float32, torch.float16, torch.bfloat16, torch.float64),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
    )
}
"""Types of numbers that a column may hold."""


@dataclass(frozen=True)
class Column:
    """One column: `dtype` and `shape` of a sample, or of one row where it is ragged.

    `mask`: name of the column that says how many rows a sample has and where they stand; "" where all have one shape.
    A mask is ragged by itself, cut after its last True.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    mask: str = ""

    @property
    def width(self) -> int:
        """Bytes of a sample, or of one row."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize

    def plain(self) -> dict[str, Any]:
        """What JSON holds."""
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Column:
        """From `plain`; ValueError for a type or a shape that no column has."""
        found = cls(data["name"], data["dtype"], tuple(data["shape"]), data["mask"])
        if found.dtype not in DTYPES or not all(type(size) is int and size >= 0 for size in found.shape):
            raise ValueError(f"{found.name}: {found.dtype} {list(found.shape)}")
        return found


@dataclass(frozen=True)
class Ragged:
    """Bytes of samples of unlike lengths, one after the other: sample i is `content[offsets[i] : offsets[i + 1]]`."""

    content: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def bytes(self) -> np.ndarray:
        """The bytes of all samples."""
        return self.content[self.offsets[0] : self.offsets[-1]]

    def take(self, indices: np.ndarray) -> Ragged:
        """The samples at `indices`, in their order."""
        starts = self.offsets[indices]
        sizes = self.offsets[indices + 1] - starts
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        parts = [self.content[start : start + size] for start, size in zip(starts.tolist(), sizes.tolist())]
        return Ragged(np.concatenate(parts) if parts else self.content[:0], offsets)

    @classmethod
    def join(cls, parts: Sequence[Ragged]) -> Ragged:
        """All samples of `parts`."""
        ends = np.cumsum([0, *(part.offsets[-1] - part.offsets[0] for part in parts)])
        content = np.concatenate([part.bytes for part in parts])
        offsets = [part.offsets[1:] - part.offsets[0] + end for part, end in zip(parts, ends)]
        return cls(content, np.concatenate([[0], *offsets]).astype(np.int64))


Cell = np.ndarray | Ragged
"""Content of a column: uint8 `[N, width]`, or ragged."""


def taken(cell: Cell, indices: np.ndarray) -> Cell:
    """The samples at `indices`, copied."""
    return cell.take(indices) if isinstance(cell, Ragged) else np.take(cell, indices, axis=0)


def joined(cells: Sequence[Cell]) -> Cell:
    """All samples of cells of one column."""
    ragged = [cell for cell in cells if isinstance(cell, Ragged)]
    if ragged:
        assert len(ragged) == len(cells), "a column is ragged everywhere or nowhere"
        return Ragged.join(ragged)
    return np.concatenate([cell for cell in cells if not isinstance(cell, Ragged)])


def lengths(mask: Tensor) -> Tensor:
    """int64 `[B]`: positions up to the last True of `[B, L]`.

    >>> lengths(torch.tensor([[True, False, True, False], [False] * 4])).tolist()
    [3, 0]
    """
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask * places).amax(-1) if mask.shape[1] else torch.zeros(len(mask), dtype=torch.int64, device=mask.device)


def trimmed_mask(mask: Tensor) -> Ragged:
    """A mask `[B, L]` without what comes after the last True of each sample."""
    sizes = lengths(mask)
    inside = torch.arange(mask.shape[1], device=mask.device) < sizes[:, None]
    return Ragged(mask[inside].cpu().numpy().view(np.uint8), _offsets(sizes))


def counted(content: np.ndarray, mask: Tensor) -> Ragged:
    """Rows uint8 `[R, width]` of all True positions of `mask` `[B, L]`, by sample."""
    return Ragged(content.reshape(-1), _offsets(mask.sum(-1)) * content.shape[1])


def whole_mask(cell: Ragged, length: int | None) -> Tensor:
    """bool `[B, L]` from `trimmed_mask`; L is `length`, or that of the longest sample."""
    sizes = np.diff(cell.offsets)
    longest = int(sizes.max(initial=0))
    if length is not None and longest > length:
        raise DataError(f"the store holds {longest} positions of a sample that has {length} here: the inputs differ")
    full = np.zeros((len(cell), longest if length is None else length), np.bool_)
    full[np.arange(full.shape[1]) < sizes[:, None]] = cell.bytes.astype(np.bool_)
    return torch.from_numpy(full)


def spread(rows: Tensor, mask: Tensor, filling: Tensor | float = 0.0) -> Tensor:
    """Rows `[R, ...]` at the True positions of `mask` `[B, L]`, `filling` elsewhere: `[B, L, ...]`.

    >>> spread(torch.tensor([1.0, 2.0]), torch.tensor([[True, False], [False, True]])).tolist()
    [[1.0, 0.0], [0.0, 2.0]]
    """
    count = int(mask.sum())
    if len(rows) != count:
        raise IntegrityError(
            f"a shard holds {len(rows)} rows where its mask has {count}: open the store with verify=all"
        )
    full = rows.new_empty(*mask.shape, *rows.shape[1:])
    full[:] = torch.as_tensor(filling, dtype=rows.dtype)
    full[mask] = rows
    return full


def _offsets(sizes: Tensor) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes.cpu().numpy())]).astype(np.int64)
