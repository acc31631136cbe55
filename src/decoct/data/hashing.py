"""Keyed randomness and content keys: numbers that depend on what a sample is, never on where it stands."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from decoct.data.lazy import LazyColumn

if TYPE_CHECKING:
    from decoct.data.base import Split

_MASK = (1 << 64) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def splitmix64(values: np.ndarray) -> np.ndarray:
    """One step of the SplitMix64 generator from each state, elementwise over uint64 (Steele, Lea, Flood 2014).

    >>> hex(int(splitmix64(np.zeros(1, np.uint64))[0]))
    '0xe220a8397b1dcdaf'
    """
    state = values.astype(np.uint64) + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))


def keyed(*parts: int | str | np.ndarray) -> np.ndarray:
    """H(parts): uint64 `[N]`, each part a number, a name or an array of `N` numbers.

    >>> int(keyed(0, "order", np.arange(3))[1]) == int(keyed(0, "order", 1)[0])
    True
    """
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = splitmix64(state ^ _words(part))
    return state


def uniform(hashes: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) from uint64 hashes."""
    return (hashes >> np.uint64(11)) * 2.0**-53


def _words(part: int | str | np.ndarray) -> np.ndarray:
    if isinstance(part, np.ndarray):
        return part.astype(np.uint64)
    if isinstance(part, str):
        part = int.from_bytes(hashlib.sha256(part.encode()).digest()[:8], "little")
    return np.array([part & _MASK], np.uint64)


def occurrences(keys: np.ndarray, columns: Mapping[str, Any]) -> np.ndarray:
    """How many equal keys come before each sample, counted by target and then by position.

    >>> occurrences(np.array([7, 5, 7, 7], np.uint64), {})
    array([0, 0, 1, 2])
    """
    if len(keys) == 0:
        return np.zeros(0, np.int64)
    target = columns.get("label", columns.get("value"))
    extra = [] if target is None else list(np.asarray(target).reshape(len(keys), -1).T)
    order = np.lexsort((np.arange(len(keys)), *extra, keys))
    ordered = keys[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    ranks = np.arange(len(keys)) - np.repeat(starts, np.diff(np.r_[starts, len(keys)]))
    result = np.empty(len(keys), np.int64)
    result[order] = ranks
    return result


def content_keys(samples: Iterable[bytes | memoryview], prefix: bytes = b"") -> np.ndarray:
    """uint64 `[N]`: the first 8 bytes (little endian) of the SHA-256 of `prefix` and each sample's bytes."""
    if not prefix:
        sha256 = hashlib.sha256
        return np.frombuffer(b"".join([sha256(sample).digest()[:8] for sample in samples]), "<u8").astype(np.uint64)
    start = hashlib.sha256(prefix)
    digests = []
    for sample in samples:
        state = start.copy()
        state.update(sample)
        digests.append(state.digest()[:8])
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def image_keys(images: np.ndarray) -> np.ndarray:
    """Keys of uint8 images `[N, H, W, C]`, from their size and pixels."""
    images = np.ascontiguousarray(images)
    size = int(np.prod(images.shape[1:]))
    if size == 0 or len(images) == 0:
        return content_keys(b"" for _ in range(len(images)))
    content = images.reshape(-1).data
    samples = (content[start : start + size] for start in range(0, len(content), size))
    return content_keys(samples, "x".join(map(str, images.shape[1:])).encode())


def text_keys(texts: Sequence[str]) -> np.ndarray:
    """Keys of texts, from their UTF-8 bytes.

    >>> hex(int(text_keys(["a"])[0])) == "0x" + bytes(reversed(hashlib.sha256(b"a").digest()[:8])).hex()
    True
    """
    return content_keys(text.encode() for text in texts)


def fingerprint(splits: Mapping[str, Split], classes: Sequence[str], features: Sequence[str]) -> str:
    """SHA-256 over all columns, keys and label masks of all splits."""
    state = hashlib.sha256(repr((tuple(classes), tuple(features))).encode())
    for name, split in sorted(splits.items()):
        state.update(repr((name, len(split), sorted(split.columns))).encode())
        for column in ("keys", "labelled"):
            _add(state, getattr(split, column))
        for _, values in sorted(split.columns.items()):
            _add(state, values)
    return state.hexdigest()


def _add(state: hashlib._Hash, values: Any) -> None:
    if values is None:
        state.update(b"none")
    elif isinstance(values, np.ndarray):
        state.update(repr((values.dtype.str, values.shape)).encode())
        if values.size:
            state.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    elif isinstance(values, LazyColumn):
        state.update(repr((values.dtype.str, values.shape)).encode())
        for block in values.blocks() if 0 not in values.shape else ():
            state.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    elif isinstance(values, str):
        state.update(f"{len(values)}:{values}".encode())
    else:
        state.update(f"list {len(values)}".encode())
        for each in values:
            _add(state, each)
