"""Image files decoded with Pillow."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np

from decoct.errors import DataError


def decode(content: bytes | Path, where: str, channels: Literal[1, 3] | None, size: int | None = None) -> np.ndarray:
    """uint8 `[H, W, C]` of an encoded image; with `size`, its shorter side scaled to it and the middle square cut out.

    `channels` None: the numbers as they stand in the file (`[H, W]` of grey and palette images), as masks need them.
    DataError says `where` the image stood that cannot be decoded.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as opened:
            if channels is None:
                return np.asarray(opened)
            picture = opened.convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{where}: no readable image ({error})") from None
    if size is not None and picture.size != (size, size):
        width, height = picture.size
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        picture = picture.resize((size, size), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(picture, np.uint8)
    return pixels[..., None] if channels == 1 else pixels


def resized(pixels: np.ndarray, size: tuple[int, int], *, nearest: bool = False) -> np.ndarray:
    """uint8 `[H, W, C]` or `[H, W]` brought to `size` (height, width), by averaging or by the nearest pixel.

    >>> resized(np.array([[1, 2], [3, 4]], np.uint8), (1, 2), nearest=True).shape
    (1, 2)
    """
    from PIL import Image

    if pixels.shape[:2] == size:
        return pixels
    grey = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    found = np.asarray(Image.fromarray(grey).resize(size[::-1], how), np.uint8)
    return found.reshape(*size, *pixels.shape[2:])


def stack(images: list[np.ndarray], places: list[str], setting: str) -> np.ndarray:
    """uint8 `[N, H, W, C]`; DataError names the first image of another size, and `setting` which helps."""
    for image, place in zip(images, places):
        if image.shape != images[0].shape:
            first, other = (f"{each.shape[1]}x{each.shape[0]}" for each in (images[0], image))
            raise DataError(f"{place} has {other} pixels, {places[0]} {first}; {setting}")
    return np.stack(images)
