"""Mean average precision of boxes, by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from decoct.models.checks import require

LIMITS = [1, 10, 100]
"""Detections of an image that count, as COCO has it; the last is for mAP."""


@dataclass(frozen=True)
class Shown:
    """What one image shows: boxes float `[n, 4]` xyxy, labels int64 `[n]`, and of detections scores float64 `[n]`."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None

    def above(self, score: float) -> Shown:
        """Those with a higher score, as truth."""
        assert self.scores is not None
        sure = self.scores > score
        return Shown(self.boxes[sure], self.labels[sure])


def average_precision(
    true: Sequence[Shown], found: Sequence[Shown], classes: int
) -> tuple[dict[str, float], dict[int, float]]:
    """map (IoU 0.5 to 0.95), map50 and map75 over the classes that are there, and map by class.

    ResourceError where faster-coco-eval is not installed.
    """
    library = require("faster_coco_eval", "vision")
    truth = library.COCO(_dataset(true, classes))
    rows = _rows(found)
    if not rows:
        there = sorted({int(label) for each in true for label in each.labels})
        return {"map": 0.0, "map50": 0.0, "map75": 0.0}, dict.fromkeys(there, 0.0)
    judge = library.COCOeval_faster(truth, truth.loadRes(rows), "bbox", print_function=lambda *_: None)
    judge.params.maxDets = LIMITS
    judge.evaluate()
    judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class; -1 where a class is not there
    by_class = {i: float(precision[:, :, i].mean()) for i in range(classes) if (precision[:, :, i] > -1).any()}
    there = list(by_class)
    quality = {
        "map": float(precision[:, :, there].mean()),
        "map50": float(precision[0][:, there].mean()),
        "map75": float(precision[5][:, there].mean()),
    }
    return quality, by_class


def _dataset(true: Sequence[Shown], classes: int) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for image, each in enumerate(true, 1):
        for box, label in zip(_sized(each.boxes), each.labels.tolist()):
            one = {"image_id": image, "category_id": label + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, **one})
    return {
        "images": [{"id": number} for number in range(1, len(true) + 1)],
        "annotations": annotations,
        "categories": [{"id": number, "name": str(number)} for number in range(1, classes + 1)],
    }


def _rows(found: Sequence[Shown]) -> list[dict[str, Any]]:
    rows = []
    for image, each in enumerate(found, 1):
        assert each.scores is not None
        for box, label, score in zip(_sized(each.boxes), each.labels.tolist(), each.scores.tolist()):
            rows.append({"image_id": image, "category_id": label + 1, "bbox": box, "score": score})
    return rows


def _sized(boxes: np.ndarray) -> list[list[float]]:
    """x, y, width, height of x0, y0, x1, y1."""
    boxes = boxes.astype(np.float64)
    found: list[list[float]] = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
    return found
