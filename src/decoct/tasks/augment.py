"""Augmentation of images, seeded sample by sample."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from decoct.data.hashing import keyed
from decoct.spec import Spec


class Augment(Spec):
    """How training images vary: `flip` mirrors half of them; `crop` shifts them by up to so many pixels."""

    flip: bool = False
    crop: int = Field(default=0, ge=0)

    def __bool__(self) -> bool:
        return self.flip or self.crop > 0


def augmented(images: np.ndarray, seeds: np.ndarray, augment: Augment) -> np.ndarray:
    """uint8 `[B, H, W, C]`, each image shifted, then mirrored, as its own seed says, whatever else is in the batch.

    Offsets are uniform on `-crop .. crop`; pixels from outside are 0.

    >>> images = np.arange(4, dtype=np.uint8).reshape(1, 1, 4, 1)
    >>> seen = [augmented(images, np.array([s], np.uint64), Augment(flip=True)).ravel().tolist() for s in range(8)]
    >>> sorted(map(tuple, {tuple(each) for each in seen}))
    [(0, 1, 2, 3), (3, 2, 1, 0)]
    """
    if not augment:
        return images
    count, height, width, _ = images.shape
    rows = np.broadcast_to(np.arange(height), (count, height))
    columns = np.broadcast_to(np.arange(width), (count, width))
    if augment.flip:
        flipped = keyed("flip", seeds) >> np.uint64(63) == 1
        columns = np.where(flipped[:, None], columns[:, ::-1], columns)
    if augment.crop:
        span = np.uint64(2 * augment.crop + 1)
        rows = rows + (keyed("down", seeds) % span).astype(np.int64)[:, None]
        columns = columns + (keyed("right", seeds) % span).astype(np.int64)[:, None]
        images = np.pad(images, ((0, 0), (augment.crop, augment.crop), (augment.crop, augment.crop), (0, 0)))
    result: np.ndarray = images[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return result
