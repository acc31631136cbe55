"""Augmentation against a loop over samples, and its independence of the batch."""

import numpy as np
import pytest

from decoct.data.hashing import keyed
from decoct.tasks.inputs.augment import Augment, augmented


def one(image: np.ndarray, seed: int, augment: Augment) -> np.ndarray:
    """The definition, for one image."""
    seeds = np.array([seed], np.uint64)
    if augment.crop:
        p = augment.crop
        down, right = (int(keyed(name, seeds)[0]) % (2 * p + 1) for name in ("down", "right"))
        image = np.pad(image, ((p, p), (p, p), (0, 0)))[down : down + image.shape[0], right : right + image.shape[1]]
    return image[:, ::-1] if augment.flip and int(keyed("flip", seeds)[0]) >> 63 else image


@pytest.mark.parametrize("augment", [Augment(flip=True), Augment(crop=2), Augment(flip=True, crop=1), Augment()])
def test_each_sample_follows_its_own_seed(augment: Augment) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 5, 7, 3), dtype=np.uint8)
    seeds = keyed("view", np.arange(40))
    seen = augmented(images, seeds, augment)
    assert seen.dtype == np.uint8
    assert seen.shape == images.shape
    assert (seen == np.stack([one(i, int(s), augment) for i, s in zip(images, seeds)])).all()
    order = np.random.default_rng(1).permutation(40)[:13]
    assert (augmented(images[order], seeds[order], augment) == seen[order]).all()


def test_offsets_are_uniform_and_half_are_mirrored() -> None:
    count = 20_000
    images = np.zeros((count, 3, 3, 1), np.uint8)
    images[:, 1, 1] = 255
    seen = augmented(images, keyed("view", np.arange(count)), Augment(crop=1))
    assert np.abs(seen.reshape(count, 9).astype(bool).mean(0) - 1 / 9).max() < 0.01
    images[:, 1, 1], images[:, 1, 0] = 0, 255
    seen = augmented(images, keyed("view", np.arange(count)), Augment(flip=True))
    assert abs((seen[:, 1, 2, 0] > 0).mean() - 0.5) < 0.02
