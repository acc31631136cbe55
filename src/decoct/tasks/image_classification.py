"""Image classification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from decoct.data.base import Dataset, Split
from decoct.data.hashing import keyed
from decoct.errors import DataError, RecipeError
from decoct.models.base import Interface
from decoct.outputs import Batch
from decoct.tasks.augment import Augment, augmented
from decoct.tasks.base import Side
from decoct.tasks.calls import ImageProgram, Kind
from decoct.tasks.classification import Classification, class_target
from decoct.tasks.supervised import SIDES, batch_of, feed_arrays, shape_of

CHUNK = 4096


class ImageClassification(Classification):
    """One class for each image: uint8 pixels in, scaled to [0, 1], resized, normalised inside the exported graph.

    `shape` (C, H, W) of the raw images and `mean`, `std` by channel (of pixels in [0, 1]) come from the training data
    where left out. `size`: the model's input is resized to so many pixels a side; `teacher_size`, `teacher_mean`,
    `teacher_std`, `teacher_shape` where the teacher's side differs. `augment` varies training images.
    Accuracy is the main metric unless `metric_name` says otherwise.
    """

    use: ClassVar[str] = "image_classification"
    shape: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = Field(default=None, ge=1)
    teacher_shape: tuple[int, ...] | None = None
    teacher_mean: tuple[float, ...] | None = None
    teacher_std: tuple[float, ...] | None = None
    teacher_size: int | None = Field(default=None, ge=1)
    augment: Augment = Augment()

    @property
    def kind(self) -> Kind:
        return "image"

    def resolve(self, data: Dataset) -> Self:
        if self.raw or (self.classes and self.shape and self.mean and self.std):
            return self
        images = _images(data.splits["train"])
        mean, std = (self.mean, self.std) if self.mean and self.std else channel_statistics(images)
        height, width, channels = images.shape[1:]
        for name in ("mean", "std", "teacher_mean", "teacher_std"):
            value = mean if name == "mean" else std if name == "std" else getattr(self, name)
            if value is not None and len(value) != channels:
                raise RecipeError(f"task.{name}: {len(value)} numbers for images of {channels} channels")
        classes = self.classes or data.classes
        return self.replace(
            classes=classes, shape=(channels, height, width), mean=self.mean or mean, std=self.std or std
        )

    def interface(self, side: Side) -> Interface:
        shape, size = self._raw_shape(side), self._size(side)
        if size is not None:
            shape = (shape[0], size, size)
        return Interface(kind="image", shape=shape, outputs=self._class_count())

    def collate(self, split: Split, indices: np.ndarray, *, seeds: np.ndarray | None = None, view: int = 0) -> Batch:
        images = _images(split, indices)
        seen = None
        if seeds is not None and self.augment:
            images = augmented(images, seeds, self.augment)
            seen = self.seen(split, indices, seeds)
        image = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        return batch_of(split, indices, dict.fromkeys(SIDES, image), class_target(split, indices), view, seen)

    def seen(self, split: Split, indices: np.ndarray, seeds: np.ndarray | None) -> np.ndarray:
        """uint64 `[B]`: what the samples at `indices` look like, as `collate` says of its batch, without the pixels."""
        keys = split.keys[indices]
        if seeds is None or not self.augment:
            return keys
        return keyed("augmented", f"flip {self.augment.flip} crop {self.augment.crop}", keys, seeds)

    def shaped_by(self, batch: Batch, outputs: int) -> Self:
        shapes = {side: shape_of(batch.side(side)) for side in SIDES}
        classes = self._class_names(outputs)
        return self.replace(shape=shapes["student"], teacher_shape=shapes["teacher"], classes=classes)

    def preprocessing(self, side: Side) -> nn.Module:
        if self.raw:
            return nn.Identity()
        mean, std = self.mean, self.std
        if side == "teacher":
            mean, std = self.teacher_mean or mean, self.teacher_std or std
        assert mean is not None, "preprocessing of a Task that is not resolved"
        assert std is not None, "preprocessing of a Task that is not resolved"
        return ImagePreprocessing(mean, std, self._size(side))

    def program(self, model: nn.Module, side: Side) -> nn.Module:
        return ImageProgram(self.preprocessing(side), model)

    def example(self, side: Side, batch: int = 2) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        shape = (batch, *self._raw_shape(side))
        if self.raw:
            return {"image": torch.randn(shape, generator=generator)}
        return {"image": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)}

    def feed(self, batch: Batch, side: Side) -> dict[str, np.ndarray]:
        return feed_arrays("image", batch.side(side))

    def axes(self, side: Side) -> Mapping[str, Mapping[int, str]]:
        return {"image": {0: "batch"}}

    def _size(self, side: Side) -> int | None:
        return self.teacher_size if side == "teacher" else self.size

    def _raw_shape(self, side: Side) -> tuple[int, ...]:
        shape = (self.teacher_shape or self.shape) if side == "teacher" else self.shape
        if shape is None:
            raise RecipeError("task.shape: not known; give the (channels, height, width) of the inputs")
        if len(shape) != 3 and not self.raw:
            raise RecipeError(f"task.shape: {shape}; images have (channels, height, width)")
        return shape


class ImagePreprocessing(nn.Module):
    """uint8 `[B, C, H, W]` -> float32: x / 255, bilinear resize to `size` a side (no antialias), (x − mean) / std."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], size: int | None) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        pixels = image.float() / 255.0
        if self.size is not None and pixels.shape[-2:] != (self.size, self.size):
            pixels = F.interpolate(pixels, (self.size, self.size), mode="bilinear", align_corners=False)
        return (pixels - self.mean) / self.std


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel of pixels / 255 of uint8 `[N, H, W, C]`; a constant channel gets std 1."""
    total = np.zeros(images.shape[-1])
    squares = np.zeros(images.shape[-1])
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK].astype(np.uint32)
        total += chunk.sum(axis=(0, 1, 2), dtype=np.uint64)
        squares += (chunk * chunk).sum(axis=(0, 1, 2), dtype=np.uint64)
    count = images.size / images.shape[-1]
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    std[std == 0] = 255.0
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def _images(split: Split, indices: np.ndarray | None = None) -> np.ndarray:
    """uint8 `[N, H, W, C]` of the samples at `indices` (None: all)."""
    if "image" not in split.columns:
        raise RecipeError(f"image_classification: the data have {', '.join(split.columns)} and no images")
    images = split.columns["image"]
    if isinstance(images, np.ndarray):
        return images if indices is None else images[indices]
    if indices is not None:
        images = [images[i] for i in indices]
    if len({image.shape for image in images}) > 1:
        raise DataError("image_classification: images differ in size; bring them to one size (data.size)")
    return np.stack(images)
