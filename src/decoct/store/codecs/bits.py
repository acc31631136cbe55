"""Whole numbers packed into as few bits as they need."""

from __future__ import annotations

import numpy as np


def bits_for(classes: int) -> int:
    """Bits of an id below `classes`.

    >>> [bits_for(classes) for classes in (1, 2, 3, 32_000, 151_936)]
    [1, 1, 2, 15, 18]
    """
    return max(1, (classes - 1).bit_length())


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` numbers of `bits` bits take."""
    return (count * bits + 7) // 8


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """Numbers `[N, K]` below 2^bits as uint8 `[N, packed_bytes(K, bits)]`, lowest bit first.

    >>> pack(np.array([[1, 2, 3]]), 2).tolist()
    [[57]]
    """
    places = np.arange(bits, dtype=np.uint32)
    single = (values.astype(np.uint32)[..., None] >> places & np.uint32(1)).astype(np.uint8)
    return np.packbits(single.reshape(len(values), values.shape[1] * bits), axis=-1, bitorder="little")


def unpack(content: np.ndarray, count: int, bits: int) -> np.ndarray:
    """int64 `[N, count]` from what `pack` wrote.

    >>> unpack(np.array([[57]], np.uint8), 3, 2).tolist()
    [[1, 2, 3]]
    """
    start = np.arange(count) * bits
    first, shift = start >> 3, start & 7
    last = content.shape[1] - 1
    columns = np.ascontiguousarray(content.T)
    window = columns[first].astype(np.int64)
    for step in range(1, (bits + 14) // 8):
        window |= columns[np.minimum(first + step, last)].astype(np.int64) << (8 * step)
    window >>= shift[:, None]
    window &= (1 << bits) - 1
    return np.ascontiguousarray(window.T)
