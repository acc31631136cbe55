"""A sample as people look at it: its text, its row with names, or a small picture of it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from decoct.data.base import Dataset, Split

SIDE, LETTERS, FIELDS = 96, 300, 40
"""Most pixels of a side, characters of a text, fields of a row."""
DIM = 32
"""A picture with no number above is brightened, as of digits of 16 greys."""


def shown(data: Dataset, split: Split, index: int) -> dict[str, Any] | None:
    """`{"text": ...}`, `{"row": {name: value}}` or `{"image": data URI of a PNG}` of a sample of a split; None where it
    is none of these.

    >>> split = Split({"text": ["a long day"]}, np.zeros(1, np.uint64))
    >>> shown(Dataset({"test": split}, "f"), split, 0)
    {'text': 'a long day'}
    """
    columns = split.columns
    if "text" in columns:
        return {"text": _text(columns["text"][index])}
    if "image" in columns:
        found = _picture(columns["image"], index, data.info.get("value_range"))
        return None if found is None else {"image": found}
    if "features" in columns:
        return {"row": _row(np.asarray(columns["features"][index]), data)}
    return None


def _text(value: Any) -> str:
    parts = [value] if isinstance(value, str) else [str(each) for each in value]
    found = " / ".join(parts)
    return found if len(found) <= LETTERS else found[: LETTERS - 1] + "…"


def _row(values: np.ndarray, data: Dataset) -> dict[str, Any]:
    """The fields by name; codes of categories as their names, missing ones as None."""
    names = data.features or tuple(map(str, range(values.size)))
    known: Mapping[str, Mapping[str, float]] = data.info.get("categories") or {}
    found: dict[str, Any] = {}
    for name, value in list(zip(names, values.reshape(-1).tolist()))[:FIELDS]:
        codes = {code: each for each, code in known.get(name, {}).items()}
        found[name] = None if value != value else codes.get(value, value)
    return found


def _picture(images: Any, index: int, values: Any) -> str | None:
    from PIL import Image

    pixels = images[np.array([index])][0] if not isinstance(images, list) else images[index]
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        return None
    brightest = int(pixels.max(initial=0))
    if values or 0 < brightest < DIM:
        low, high = values or (0, brightest)
        pixels = np.clip((pixels - float(low)) * 255 / (high - low), 0, 255).astype(np.uint8)
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((SIDE, SIDE))
    held = io.BytesIO()
    picture.save(held, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
