"""The largest log-probabilities of each row, and what is left in its tail."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from decoct.data.hashing import keyed, uniform
from decoct.errors import DataError
from decoct.outputs import Tail, TopK
from decoct.store.codecs import affine
from decoct.store.codecs.base import Codec, Decoded, Lost, checked, kl, raw, typed
from decoct.store.codecs.bits import bits_for, pack, packed_bytes, unpack

_CHUNK = (1 << 26, 1 << 20)
"""Logits whose exponentials are held at once: on an accelerator, and on the CPU, where fewer are faster."""


class TopKCodec(Codec):
    """The k largest log-probabilities with their class ids, and the mass of the tail; never renormalised.

    `k` classes a row (all of them where there are no more), ids packed into ceil(log2 C) bits, most likely first.
    `dtype` of the log-probabilities; with uint8 all of a row move by one amount so that their mass stays exact, and
    the error of each is at most one step, 1/254 of the row's span. `tail`: "bucket" keeps what the tail sums to,
    at each of `temperatures` (1 is always kept); "uniform" gives each class of the tail an equal part of its mass at
    temperature 1; "sample" keeps the bucket and `draws` classes of the tail, drawn by their probability from the
    sample's key, spread evenly over the tail (systematic draws: unbiased, with less variance than independent ones).
    """

    use: ClassVar[str] = "top_k"
    positional: ClassVar[tuple[str, ...]] = ("k",)
    k: int = Field(ge=1)
    tail: Tail = "bucket"
    dtype: Literal["uint8", "float16", "float32"] = "uint8"
    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0)
    draws: int = Field(default=16, ge=1, le=65_536)

    @field_validator("temperatures")
    @classmethod
    def _positive(cls, given: tuple[float, ...]) -> tuple[float, ...]:
        if any(not (math.isfinite(each) and each > 0) for each in given):
            raise ValueError(f"temperatures {list(given)}: each must be finite and above 0")
        return (1.0, *sorted(set(given) - {1.0}))

    def kept(self, classes: int) -> int:
        """Classes that are kept one by one."""
        return min(self.k, classes)

    def rests(self) -> tuple[float, ...]:
        """Temperatures at which the tail's sum is kept."""
        return (1.0,) if self.tail == "uniform" else self.temperatures

    def drawn(self, classes: int) -> int:
        """Draws from the tail."""
        return self.draws if self.tail == "sample" and self.k < classes else 0

    def columns(self, classes: int) -> dict[str, int]:
        kept, bits, drawn = self.kept(classes), bits_for(classes), self.drawn(classes)
        found = {"ids": packed_bytes(kept, bits), "log_probs": kept * getattr(torch, self.dtype).itemsize}
        if self.dtype == "uint8":
            found["affine"] = 8
        found["rest"] = 4 * len(self.rests())
        if drawn:
            found |= {"drawn": packed_bytes(drawn, bits), "drawn_log_probs": drawn * self._drawn_dtype().itemsize}
        return found

    def _drawn_dtype(self) -> torch.dtype:
        return torch.float32 if self.dtype == "float32" else torch.float16

    def encode(self, logits: Any, seen: np.ndarray) -> dict[str, np.ndarray]:
        given = torch.as_tensor(logits)
        step = max(1, _CHUNK[given.device.type == "cpu"] // max(given.shape[-1], 1))
        starts = range(0, max(len(given), 1), step)
        parts = [self.pack(self.select(checked(given[i : i + step]), seen[i : i + step])) for i in starts]
        return parts[0] if len(parts) == 1 else {n: np.concatenate([part[n] for part in parts]) for n in parts[0]}

    def select(self, values: Tensor, seen: np.ndarray) -> TopK:
        """What is kept of float32 logits `[N, C]`, before it is rounded."""
        classes = values.shape[1]
        log_probs = values.log_softmax(-1)
        largest, ids = log_probs.topk(self.kept(classes), dim=-1)
        tail = log_probs.scatter_(-1, ids, -torch.inf)
        rest, weights = _tail_sums(tail, self.rests())
        found = TopK(ids, largest, rest, classes, self.tail, self.rests())
        if not self.drawn(classes):
            return found
        drawn = _draw(weights, seen, self.draws, ids[:, 0])
        return replace(found, drawn=drawn, drawn_log_probs=tail.gather(-1, drawn))

    def pack(self, top: TopK) -> dict[str, np.ndarray]:
        """Columns of a TopK `[N, k]` that was selected with the settings of this codec; DataError for another."""
        self._refuse_unlike(top)
        bits = bits_for(top.classes)
        found = {"ids": pack(top.ids.cpu().numpy(), bits)}
        if self.dtype == "uint8":
            codes, scale = affine.quantized(top.log_probs)
            moved = top.log_probs.logsumexp(-1) - affine.restored(codes, scale).logsumexp(-1)
            scale[:, 0] += moved
            found |= {"log_probs": raw(codes), "affine": raw(scale)}
        else:
            found["log_probs"] = raw(top.log_probs.to(getattr(torch, self.dtype)))
        found["rest"] = raw(top.rest)
        if top.drawn is not None and top.drawn.shape[-1]:
            assert top.drawn_log_probs is not None, "refused above"
            found["drawn"] = pack(top.drawn.cpu().numpy(), bits)
            found["drawn_log_probs"] = raw(top.drawn_log_probs.to(self._drawn_dtype()))
        return found

    def _refuse_unlike(self, top: TopK) -> None:
        drawn = 0 if top.drawn is None else top.drawn.shape[-1]
        given = (top.ids.shape[-1], top.temperatures, top.tail, drawn)
        wanted = (self.kept(top.classes), self.rests(), self.tail, self.drawn(top.classes))
        if given != wanted or (drawn and top.drawn_log_probs is None):
            raise DataError(
                f"the teacher gave k, temperatures, tail and draws {given}, the codec keeps {wanted}; make them equal"
            )

    def decode(self, columns: Mapping[str, np.ndarray], classes: int) -> Decoded:
        kept, bits = self.kept(classes), bits_for(classes)
        ids = torch.from_numpy(unpack(columns["ids"], kept, bits))
        log_probs = typed(columns["log_probs"], getattr(torch, self.dtype))
        if self.dtype == "uint8":
            log_probs = affine.restored(log_probs, typed(columns["affine"], torch.float32))
        rest = typed(columns["rest"], torch.float32)
        found = TopK(ids, log_probs.float(), rest, classes, self.tail, self.rests())
        if self.tail == "uniform":
            return found.spread()
        if not self.drawn(classes):
            return found
        drawn = torch.from_numpy(unpack(columns["drawn"], self.draws, bits))
        theirs = typed(columns["drawn_log_probs"], self._drawn_dtype()).float()
        return replace(found, drawn=drawn, drawn_log_probs=theirs)

    def lost(self, logits: Any, decoded: Decoded) -> Lost:
        exact = checked(logits).cpu().double().log_softmax(-1)
        largest, ids = exact.topk(self.kept(exact.shape[1]), dim=-1)
        mass = largest.exp().sum(-1).mean().item()
        if isinstance(decoded, Tensor):
            return Lost(kl(exact, decoded.double().log_softmax(-1)), mass)
        spread = decoded.spread().double().log_softmax(-1)
        return Lost(
            kl(exact, spread), mass, "with the tail's mass spread evenly" if ids.shape[1] < exact.shape[1] else ""
        )


def _tail_sums(tail: Tensor, temperatures: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """log Σ exp(tail / T) `[N, S]` over log-probabilities `[N, C]`, and their exp at T = 1 over that of the largest.

    Beginning with the hottest; where a temperature is half of the one before, its exp is the square of that one's.
    """
    largest = tail.amax(-1, keepdim=True)
    shift = largest.masked_fill(largest == -torch.inf, 0.0)
    below = tail.sub(shift)
    sums, before, powers = {}, math.inf, below
    at_one = below
    for temperature in sorted(temperatures, reverse=True):
        if before != 2 * temperature:
            powers = below.div(temperature).exp_()
        else:
            powers = powers.square() if before == 1 else powers.square_()
        sums[temperature] = powers.sum(-1).log_().add_(shift[:, 0] / temperature)
        before = temperature
        at_one = powers if temperature == 1 else at_one
    return torch.stack([sums[temperature] for temperature in temperatures], -1), at_one


def _draw(weights: Tensor, seen: np.ndarray, draws: int, fallback: Tensor) -> Tensor:
    """int64 `[N, draws]`: classes drawn by `weights` `[N, C]`, the i-th from the i-th of equal parts of their sum.

    `fallback` `[N]` where all weights are 0.
    """
    numbers = uniform(keyed("tail", np.repeat(seen, draws), np.tile(np.arange(draws), len(seen))))
    parts = torch.from_numpy((np.arange(draws) + numbers.reshape(len(seen), draws)) / draws).to(weights.device)
    heights = weights.cumsum(-1, dtype=torch.float64)
    total = heights[:, -1:].contiguous()
    last = torch.searchsorted(heights, total)
    picked = torch.searchsorted(heights, parts * total, right=True).minimum(last)
    return torch.where(total > 0, picked, fallback[:, None])
