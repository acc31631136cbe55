"""Weights as integers: the affine scheme in NumPy, by channel and by group, and packing two of 4 bits into a byte."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Grouped:
    """Integers `[N, G, B]` of 4 or 8 bits without sign, with a scale and zero point for each of `[N, G]` groups."""

    values: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    length: int

    def floats(self) -> np.ndarray:
        """What the integers stand for, `[N, length]`: (value - zero) * scale."""
        found = (self.values.astype(np.float32) - self.zeros[..., None]) * self.scales[..., None]
        return found.reshape(len(found), -1)[:, : self.length]


def by_channel(weights: np.ndarray, axis: int | None, limit: int = 127) -> tuple[np.ndarray, np.ndarray]:
    """int8 values and float32 scales, symmetric: round(w / scale) with scale = max |w| / limit.

    Scales keep all axes (size 1 except `axis`; None: one scale). A channel of zeros has scale 1.

    >>> by_channel(np.array([[0.5, -1.0]]), axis=0)[0].tolist()
    [[64, -127]]
    """
    others = tuple(each for each in range(weights.ndim) if each != axis)
    largest = np.abs(weights).max(axis=others, keepdims=True).astype(np.float64)
    scales = np.where(largest > 0, largest / limit, 1.0).astype(np.float32)
    scales[scales == 0] = 1.0
    values = np.clip(np.rint(weights / scales), -limit, limit).astype(np.int8)
    return values, scales


def grouped(weights: np.ndarray, block: int, bits: int, *, symmetric: bool) -> Grouped:
    """Groups of `block` along the last axis of `[N, K]`, padded with zeros; affine: (max - min) over all levels.

    The range of a group always holds 0, so that padding and pruned weights stay exact. Symmetric: max |w| at
    2**(bits-1) - 1 steps, the zero point in the middle.
    """
    rows, length = weights.shape
    blocks = -(-length // block)
    padded = np.zeros((rows, blocks * block), np.float64)
    padded[:, :length] = weights
    parts = padded.reshape(rows, blocks, block)
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    if symmetric:
        reach = np.abs(parts).max(-1)
        scales = np.where(reach > 0, reach / (middle - 1), 1.0)
        zeros = np.full(scales.shape, middle)
    else:
        low, high = np.minimum(parts.min(-1), 0.0), np.maximum(parts.max(-1), 0.0)
        scales = np.where(high > low, (high - low) / top, 1.0)
        zeros = np.clip(np.rint(-low / scales), 0, top)
    scales = scales.astype(np.float32)
    scales[scales == 0] = 1.0
    values = np.clip(np.rint(parts / scales[..., None]) + zeros[..., None], 0, top)
    return Grouped(values.astype(np.uint8), scales, zeros.astype(np.uint8), length)


def packed(values: np.ndarray) -> np.ndarray:
    """Two values of 4 bits a byte along the last axis, the first in the low half; an odd end is filled with 0.

    >>> packed(np.array([1, 2, 3], np.uint8)).tolist()
    [33, 3]
    """
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], 1), np.uint8)], -1)
    return (values[..., ::2] | (values[..., 1::2] << 4)).astype(np.uint8)


def sqnr(exact: np.ndarray, found: np.ndarray) -> float:
    """Signal to quantization noise in dB: 10 log10(sum w^2 / sum (w - q)^2); 999 where there is no noise."""
    noise = float(((exact.astype(np.float64) - found) ** 2).sum())
    signal = float((exact.astype(np.float64) ** 2).sum())
    return 999.0 if noise == 0 else float(10 * np.log10(max(signal, 1e-300) / noise))
