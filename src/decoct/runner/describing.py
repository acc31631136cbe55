"""What data hold, in one line."""

from __future__ import annotations

from typing import Any

import numpy as np

from decoct.data.base import Dataset
from decoct.tasks.base import Task

SHOWN = 4


def described(data: Dataset, task: Task) -> str:
    """What was read, as a person would say it, with how it is split and what is learnt.

    600 images of 32x32, 10 classes (60 each), 430 / 50 / 120 to train, validate and test, task image_classification
    """
    count = sum(map(len, data.splits.values()))
    parts = [f"{count:,} {_things(data)}"]
    if data.classes:
        parts.append(f"{len(data.classes)} classes ({_balance(data)})")
    sizes = " / ".join(f"{len(data.splits[name]):,}" if name in data.splits else "0" for name in NAMES)
    parts.append(f"{sizes} to train, validate and test")
    target = data.info.get("target")
    parts.append(f"target {target!r}, task {task.use}" if target is not None else f"task {task.use}")
    return ", ".join(parts)


NAMES = ("train", "validation", "test")


def _things(data: Dataset) -> str:
    columns: Any = data.splits["train"].columns
    if "image" in columns:
        shape = np.shape(columns["image"][0])
        return f"images of {shape[1]}x{shape[0]}"
    if "text" in columns:
        return "texts"
    if "words" in columns:
        return "sentences"
    return f"rows of {len(data.features)} columns" if data.features else "samples"


def _balance(data: Dataset) -> str:
    """How many samples each class has, over all splits."""
    labels = [split.columns["label"] for split in data.splits.values() if "label" in split.columns]
    if not labels:
        return ", ".join(data.classes[:SHOWN]) + (", ..." if len(data.classes) > SHOWN else "")
    counts = np.bincount(np.concatenate(labels), minlength=len(data.classes))
    if counts.min() == counts.max():
        return f"{counts[0]:,} each"
    if len(counts) <= SHOWN:
        return ", ".join(f"{name} {count:,}" for name, count in zip(data.classes, counts))
    return f"{counts.min():,} to {counts.max():,} each"
