"""Images: uint8 pixels, scaled, resized and normalised inside the exported graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, overload

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from decoct.data.base import Dataset, Split
from decoct.data.hashing import keyed
from decoct.data.lazy import LazyColumn
from decoct.data.pixels import Pixels
from decoct.errors import DataError, RecipeError
from decoct.models.calls import ImageProgram, Postprocessing
from decoct.models.interface import InputKind, Port, input_ports
from decoct.tasks.inputs.augment import Augment, augmented, placed
from decoct.tasks.inputs.base import STUDENT, Inputs, Trace, as_arrays, made_up, refuse_but_tensor, sizes_of

CHUNK_BYTES = 1 << 20
Resample = Literal["bilinear", "bicubic"]


class Images(Inputs):
    """uint8 pixels in, scaled to [0, 1], resized, normalised inside the exported graph.

    `shape` (C, H, W) of the raw images and `mean`, `std` by channel (of pixels in [0, 1]) come from the training data
    where left out. `size`: the model's input is resized to so many pixels a side, by `resample` (bilinear, bicubic);
    `teacher_size`, `teacher_resample`, `teacher_mean`, `teacher_std`, `teacher_shape` where the teacher's side differs.
    `augment` varies training images.
    """

    use: ClassVar[str] = "images"
    kind: ClassVar[InputKind] = "image"
    mixes_views: ClassVar[bool] = True
    prepares: ClassVar[bool] = True
    shape: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = Field(default=None, ge=1, le=16_384)
    resample: Resample | None = Field(default=None, exclude_if=lambda value: value is None)
    teacher_resample: Resample | None = Field(default=None, exclude_if=lambda value: value is None)
    teacher_shape: tuple[int, ...] | None = None
    teacher_mean: tuple[float, ...] | None = None
    teacher_std: tuple[float, ...] | None = None
    teacher_size: int | None = Field(default=None, ge=1, le=16_384)
    augment: Augment = Augment()

    def resolve_inputs(self, data: Dataset) -> dict[str, Any]:
        if self.raw:
            return {}
        if self.shape and self.mean and self.std:
            self._refuse_wide_crop(self.shape[1:])
            return {}
        images = images_of(data.splits["train"])
        self._refuse_wide_crop(images.shape[1:3])
        mean, std = (self.mean, self.std) if self.mean and self.std else channel_statistics(images)
        height, width, channels = images.shape[1:]
        for name in ("mean", "std", "teacher_mean", "teacher_std"):
            value = mean if name == "mean" else std if name == "std" else getattr(self, name)
            if value is not None and len(value) != channels:
                raise RecipeError(f"task.{name}: {len(value)} numbers for images of {channels} channels")
        return {"shape": (channels, height, width), "mean": self.mean or mean, "std": self.std or std}

    def _refuse_wide_crop(self, sides: Sequence[int]) -> None:
        if sides and self.augment.crop and self.augment.crop >= min(sides):
            raise RecipeError(
                f"task.augment.crop: {self.augment.crop} for images of {'x'.join(map(str, sides))} pixels would push "
                f"all of them out; give at most {min(sides) - 1}"
            )

    def of(self, reader: str) -> Self:
        own = dict.fromkeys(("teacher_shape", "teacher_mean", "teacher_std", "teacher_size", "teacher_resample"))
        if reader == STUDENT:
            return self.replace(**own)
        return self.replace(
            **own,
            shape=self.teacher_shape or self.shape,
            mean=self.teacher_mean or self.mean,
            std=self.teacher_std or self.std,
            size=self.teacher_size,
            resample=self.teacher_resample,
        )

    def read(self, split: Split, indices: np.ndarray, seeds: np.ndarray | None) -> tuple[Tensor, Trace | None]:
        images = images_of(split, indices)
        trace = None
        if seeds is not None and self.augment:
            images = augmented(images, seeds, self.augment)
            trace = Trace(matrix=torch.from_numpy(placed(seeds, self.augment, images.shape[2])))
        pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        # Laid out anew: with one channel NumPy keeps strides that torch takes for channels-last, in which oneDNN
        # overwrites memory of narrow 1x1 convolutions on processors without AVX-512.
        return torch.from_numpy(pixels.reshape(-1)).view(pixels.shape), trace

    def seen(self, split: Split, indices: np.ndarray, seeds: np.ndarray | None) -> np.ndarray:
        keys = split.keys[indices]
        if seeds is None or not self.augment:
            return keys
        return keyed("augmented", f"flip {self.augment.flip} crop {self.augment.crop}", keys, seeds)

    @property
    def variation(self) -> dict[str, Any] | None:
        return self.augment.plain() if self.augment else None

    def ports(self) -> dict[str, Port]:
        shape = self._raw_shape()
        if self.size is not None:
            shape = (shape[0], self.size, self.size)
        return input_ports("image", shape)

    def preprocessing(self) -> nn.Module:
        if self.raw:
            return nn.Identity()
        assert self.mean is not None, "preprocessing of a Task that is not resolved"
        assert self.std is not None, "preprocessing of a Task that is not resolved"
        return ImagePreprocessing(self.mean, self.std, self.size, self.resample or "bilinear")

    def program(self, model: nn.Module, postprocessing: Postprocessing | None) -> nn.Module:
        return ImageProgram(self.preprocessing(), model, postprocessing)

    def example(self, batch: int = 2) -> dict[str, Tensor]:
        shape = (batch, *self._raw_shape())
        return {"image": made_up(shape) if self.raw else made_up(shape, 256).to(torch.uint8)}

    def asked(self, info: Mapping[str, Any]) -> dict[str, Any]:
        channels, height, width = self._raw_shape()
        if channels not in (1, 3):
            raise RecipeError(f"pictures of {channels} channels are no photos")
        found = {"channels": channels, "height": height, "width": width, "fit": "crop"}
        return {"image": found | {name: list(info[name]) for name in ("value_range",) if info.get(name)}}

    def axes(self) -> Mapping[str, Mapping[int, str]]:
        return {"image": {0: "batch"}}

    def feed(self, inputs: Any) -> dict[str, np.ndarray]:
        return as_arrays(inputs, "image")

    def refuse_other(self, reader: str, value: Any) -> None:
        refuse_but_tensor(self.kind, reader, value)

    def shapes_of(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"shape": sizes_of(inputs["student"]), "teacher_shape": sizes_of(inputs["teacher"])}

    def _raw_shape(self) -> tuple[int, ...]:
        if self.shape is None:
            raise RecipeError("task.shape: not known; give the (channels, height, width) of the inputs")
        if len(self.shape) != 3 and not self.raw:
            raise RecipeError(f"task.shape: {self.shape}; images have (channels, height, width)")
        return self.shape


class ImagePreprocessing(nn.Module):
    """uint8 `[B, C, H, W]` -> float32: x / 255, resized to `size` a side (no antialias), (x − mean) / std.

    `resample`: bilinear, or bicubic (a = −0.75), whose overshoot is cut to [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], size: int | None, resample: Resample = "bilinear"
    ) -> None:
        super().__init__()
        self.size, self.resample = size, resample
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        pixels = image.float() / 255.0
        if self.size is not None and pixels.shape[-2:] != (self.size, self.size):
            pixels = F.interpolate(pixels, (self.size, self.size), mode=self.resample, align_corners=False)
            if self.resample == "bicubic":
                pixels = pixels.clamp(0.0, 1.0)
        return (pixels - self.mean) / self.std


def channel_statistics(images: np.ndarray | LazyColumn) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel of pixels / 255 of uint8 `[N, H, W, C]`; a constant channel gets std 1."""
    if isinstance(images, Pixels):
        return _statistics(*images.sums(), math.prod(images.shape[:-1]))
    width, channels = images.shape[2:]
    total, squares = np.zeros(channels, np.uint64), np.zeros(channels, np.uint64)
    step = max(CHUNK_BYTES // max(images[:1].nbytes, 1), 1)
    for start in range(0, len(images), step):
        rows = images[start : start + step].reshape(-1, width * channels)
        kind = np.uint32 if len(rows) <= 1 << 16 else np.uint64  # 2^16 squares of bytes fit into 32 bits
        total += rows.sum(0, dtype=kind).reshape(-1, channels).sum(0, dtype=np.uint64)
        squares += np.square(rows, dtype=np.uint16).sum(0, dtype=kind).reshape(-1, channels).sum(0, dtype=np.uint64)
    return _statistics(total, squares, math.prod(images.shape[:-1]))


def _statistics(total: np.ndarray, squares: np.ndarray, count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    std[std == 0] = 255.0
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


@overload
def images_of(split: Split) -> np.ndarray | LazyColumn: ...


@overload
def images_of(split: Split, indices: np.ndarray) -> np.ndarray: ...


def images_of(split: Split, indices: np.ndarray | None = None) -> np.ndarray | LazyColumn:
    """uint8 `[N, H, W, C]` of the samples at `indices` (None: all)."""
    if "image" not in split.columns:
        raise RecipeError(f"the data have {', '.join(split.columns)} and no images")
    images = split.columns["image"]
    if isinstance(images, np.ndarray | LazyColumn):
        _refuse_other_numbers(images)
        return images if indices is None else images[indices]
    if indices is not None:
        images = [images[i] for i in indices]
    for image in images:
        _refuse_other_numbers(image)
    if len({image.shape for image in images}) > 1:
        raise DataError("images differ in size; bring them to one size (data.size)")
    return np.stack(images)


def _refuse_other_numbers(image: np.ndarray | LazyColumn) -> None:
    """DataError for pixels that are not of 8 bits: they would be divided by 255 all the same."""
    if image.dtype != np.uint8:
        raise DataError(f"the column image holds {image.dtype}; scale its numbers to 0 to 255, uint8")
