"""Images: preprocessing and statistics against NumPy, and what augmentation reaches."""

import numpy as np
import pytest
import torch

from decoct.data.base import Dataset
from decoct.data.digits import Digits
from decoct.data.hashing import keyed
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.inputs.augment import Augment
from decoct.tasks.inputs.images import Images, channel_statistics


def bilinear(pixels: np.ndarray, size: int) -> np.ndarray:
    """Bilinear resize of `[C, H, W]` float64 with half-pixel centres and clamped borders."""
    for axis in (1, 2):
        length = pixels.shape[axis]
        centre = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, None)
        low = np.minimum(np.floor(centre).astype(int), length - 1)
        high, part = np.minimum(low + 1, length - 1), centre - low
        part = part.reshape((-1, 1) if axis == 1 else (1, -1))
        pixels = np.take(pixels, low, axis) * (1 - part) + np.take(pixels, high, axis) * part
    return pixels


@pytest.mark.parametrize(("side", "size"), [("student", 5), ("teacher", 14)])
def test_image_preprocessing_against_numpy(images: Dataset, side: str, size: int) -> None:
    task = ImageClassification(size=5, teacher_size=14, teacher_mean=(0.4, 0.5, 0.6), teacher_std=(0.2, 0.3, 0.1))
    task = task.resolve(images)
    batch = task.collate(images.splits["test"], np.arange(6))
    mean, std = (task.teacher_mean, task.teacher_std) if side == "teacher" else (task.mean, task.std)
    found = task.reading(side).preprocessing()(batch.side(side)).numpy()
    for image, ours in zip(images.splits["test"].columns["image"], found):
        expected = bilinear(image.transpose(2, 0, 1) / 255.0, size)
        expected = (expected - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert task.reading(side).interface.shape == (3, size, size)


def test_grey_images_are_laid_out_by_channel_first() -> None:
    """Not in the strides of channels-last, which are as contiguous with one channel and choose other kernels."""
    data = Digits().open()
    batch = ImageClassification().resolve(data).collate(data.splits["test"], np.arange(3))
    assert batch.side("student").stride() == (64, 64, 8, 1)


def test_sides_that_differ_in_preprocessing_share_one_image(images: Dataset) -> None:
    task = ImageClassification(size=5, teacher_size=14, teacher_mean=(0.4, 0.5, 0.6), augment=Augment(flip=True))
    task, split = task.resolve(images), images.splits["train"]
    assert task.inputs("student") != task.inputs("teacher")
    for seeds in (None, keyed("view", split.keys[:5])):
        batch = task.collate(split, np.arange(5), seeds=seeds)
        assert batch.side("student") is batch.side("teacher")
    other = Images(augment=Augment())
    batch = task.collate(split, np.arange(5), seeds=keyed("view", split.keys[:5]), readers={"second": other})
    assert torch.equal(batch.side("second"), task.collate(split, np.arange(5)).side("student"))
    assert not torch.equal(batch.side("second"), batch.side("student"))


def test_channel_statistics_against_numpy(images: Dataset) -> None:
    pixels = images.splits["train"].columns["image"]
    mean, std = channel_statistics(pixels)
    np.testing.assert_allclose(mean, (pixels / 255.0).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (pixels / 255.0).std((0, 1, 2)), rtol=1e-12)
    assert channel_statistics(np.full((2, 3, 3, 1), 7, np.uint8))[1] == (1.0,)


def test_augmentation_reaches_both_sides_alike_and_only_in_training(images: Dataset) -> None:
    task = ImageClassification(augment=Augment(flip=True, crop=2)).resolve(images)
    split, indices = images.splits["train"], np.arange(30)
    seeds = keyed("view", split.keys[indices])
    plain, varied = task.collate(split, indices), task.collate(split, indices, seeds=seeds, view=3)
    assert torch.equal(plain.side("student"), torch.from_numpy(split.columns["image"][:30].transpose(0, 3, 1, 2)))
    assert not torch.equal(varied.side("student"), plain.side("student"))
    assert varied.side("student") is varied.side("teacher")
    assert varied.view == 3
    assert torch.equal(task.collate(split, indices[5:9], seeds=seeds[5:9]).side("student"), varied.side("student")[5:9])
