"""Views: a fixed number of augmented views of each sample, and what a sample looks like in one of them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BeforeValidator, Field

from decoct.data.hashing import keyed
from decoct.outputs import Batch, content_of
from decoct.spec import Spec


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
    return content_of(batch.side(side))
