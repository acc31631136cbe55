"""Views: a fixed number of augmented views of each sample, and what a sample looks like in one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import BeforeValidator, Field

from decoct.data.hashing import content_keys, keyed
from decoct.spec import Spec

if TYPE_CHECKING:
    from decoct.outputs import Batch


class Views(Spec):
    """`count` augmented views of each sample, the same in every epoch, run and process.

    View k of a sample is augmented from H(seed, k, key). In epoch e a sample is seen in view (e + H(seed, key)) mod
    count, so that each view comes up equally often, whatever the order, the subset or the batch.
    """

    positional: ClassVar[tuple[str, ...]] = ("count",)
    count: int = Field(default=1, ge=1, le=65536)
    seed: int = Field(default=0, ge=0)

    def numbers(self, epoch: int, keys: np.ndarray) -> np.ndarray:
        """uint64 `[N]`: in which view each sample is seen in an epoch.

        >>> keys = np.arange(3, dtype=np.uint64)
        >>> seen = [Views(count=4).numbers(epoch, keys) for epoch in range(4)]
        >>> np.sort(seen, axis=0)[:, 0].tolist()
        [0, 1, 2, 3]
        """
        start = keyed(self.seed, "first view", keys)
        found: np.ndarray = (start % np.uint64(self.count) + np.uint64(epoch)) % np.uint64(self.count)
        return found

    def seeds(self, numbers: np.ndarray | int, keys: np.ndarray) -> np.ndarray:
        """uint64 `[N]`: from what each sample is augmented in its view."""
        return keyed(self.seed, "view", numbers, keys)


def _views(value: Any) -> Any:
    return {"count": value} if isinstance(value, int) and not isinstance(value, bool) else value


ViewsSetting = Annotated[Views, BeforeValidator(_views, json_schema_input_type=Views | int)]
"""A setting that takes `8` for `{count: 8}`."""


def seen_of(batch: Batch, side: str = "teacher") -> np.ndarray:
    """uint64 `[B]`: what each sample of a batch looks like, by which stored answers are found.

    What the batch says itself; for one that came from a user's loader the SHA-256 of the sample's own inputs (of ids
    those that the attention mask keeps, so that padding does not matter).
    """
    if batch.seen is not None:
        found: np.ndarray = batch.seen
        return found
    inputs = batch.side(side)
    if isinstance(inputs, Mapping):
        return _of_parts(inputs)
    array = _array(inputs)
    prefix = f"{array.dtype.str} {array.shape[1:]}".encode()
    return content_keys((row.data for row in array), prefix)


def _of_parts(inputs: Mapping[str, Any]) -> np.ndarray:
    arrays = {name: _array(value) for name, value in sorted(inputs.items())}
    kept = arrays.pop("attention_mask", None)
    digests = []
    for row in range(len(next(iter(arrays.values())))):
        state = hashlib.sha256()
        for name, array in arrays.items():
            one = array[row]
            if kept is not None and one.shape[:1] == kept.shape[1:]:
                one = one[kept[row].astype(bool)]
            state.update(f"{name} {one.dtype.str} {one.shape}".encode() + one.tobytes())
        digests.append(state.digest()[:8])
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def _array(tensor: Any) -> np.ndarray:
    found: np.ndarray = np.ascontiguousarray(tensor.detach().cpu().numpy())
    return found
