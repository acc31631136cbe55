"""Augmentation of images, seeded sample by sample."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from decoct.data.hashing import keyed
from decoct.spec import Spec


class Augment(Spec):
    """How training images vary: `flip` mirrors half of them; `crop` shifts them by up to so many pixels."""

    flip: bool = False
    crop: int = Field(default=0, ge=0, le=16_384)

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
    images = np.ascontiguousarray(images)
    result = np.zeros_like(images)
    pixel = np.dtype((np.void, images.shape[-1]))  # whole pixels are moved, which is faster than bytes
    for target, image, mirrored, top, left in zip(
        result.view(pixel)[..., 0], images.view(pixel)[..., 0], *_drawn(seeds, augment)
    ):
        shown = target[:, ::-1] if mirrored else target
        _shifted(shown, image, int(top) - augment.crop, int(left) - augment.crop)
    return result


def _shifted(target: np.ndarray, image: np.ndarray, down: int, right: int) -> None:
    """Puts into `target` [H, W] the image seen from `down` rows and `right` columns further on."""
    height, width = image.shape[:2]
    top, bottom = min(max(-down, 0), height), max(min(height - down, height), 0)
    left, end = min(max(-right, 0), width), max(min(width - right, width), 0)
    if top < bottom and left < end:
        target[top:bottom, left:end] = image[top + down : bottom + down, left + right : end + right]


def placed(seeds: np.ndarray, augment: Augment, width: int) -> np.ndarray:
    """float32 `[B, 2, 3]`: from (x, y, 1) of an image to (x, y) of what `augmented` makes of it; pixel centres are
    whole numbers.

    >>> placed(np.zeros(1, np.uint64), Augment(), 4).tolist()
    [[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]
    """
    count = len(seeds)
    flipped, down, right = _drawn(seeds, augment)
    matrix = np.zeros((count, 2, 3), np.float32)
    matrix[:, 0, 0] = np.where(flipped, -1.0, 1.0)
    matrix[:, 1, 1] = 1.0
    moved = augment.crop - right
    matrix[:, 0, 2] = np.where(flipped, width - 1 - moved, moved)
    matrix[:, 1, 2] = augment.crop - down
    return matrix


def _drawn(seeds: np.ndarray, augment: Augment) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each image: whether it is mirrored, and from which row and column of the padded image it is cut."""
    count = len(seeds)
    flipped, down, right = np.zeros(count, bool), np.zeros(count, np.int64), np.zeros(count, np.int64)
    if augment.flip:
        flipped = keyed("flip", seeds) >> np.uint64(63) == 1
    if augment.crop:
        span = np.uint64(2 * augment.crop + 1)
        down = (keyed("down", seeds) % span).astype(np.int64)
        right = (keyed("right", seeds) % span).astype(np.int64)
    return flipped, down, right
