"""Boxes: what an image shows and where, each with a class and a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from decoct.data.base import Dataset, Split
from decoct.errors import DataError, RecipeError
from decoct.memory import Width
from decoct.models.boxes import detections, one_hot_scores, padded
from decoct.models.calls import Postprocessing
from decoct.models.interface import Port
from decoct.outputs import Batch, Needs, Outputs
from decoct.tasks.answers.base import Answer, Over, Scores, Tally, Traces
from decoct.tasks.answers.box_metrics import Shown, average_precision
from decoct.tasks.inputs.base import STUDENT, Inputs

RAW = ("candidates", "likely")
"""Values of a one-stage model in eval mode: all its boxes `[B, N, 4]` and their probabilities `[B, N, C]`."""
TRUSTED = 0.5
"""The score above which boxes of the reference count as truth in `map_to_teacher`."""


class Boxes(Answer):
    """Boxes in pixels of what the model reads; the target is a list of `{"boxes": [n, 4] xyxy, "labels": [n]}`.

    `classes`: names, from the data where left out. The model computes its loss itself; it is a mean over images. A
    predictor gives the values `boxes` `[B, K, 4]`, `scores` `[B, K]`, `labels` `[B, K]` and `valid` `[B, K]`, the best
    first, `most` at most: of all boxes whose score is above `above` those that no better one of their class overlaps by
    more than `overlap`. That is done after torch and after every runtime alike; the exported file gives all boxes and
    their logits apart (a score is the sigmoid of one).
    """

    distribution: ClassVar[bool] = False
    combines: ClassVar[bool] = False
    target_columns: ClassVar[tuple[str, ...]] = ("boxes",)
    classes: tuple[str, ...] = ()
    above: float = Field(default=0.05, ge=0, lt=1)
    overlap: float = Field(default=0.5, gt=0, le=1)
    most: Width = 100

    @property
    def metric(self) -> tuple[str, Literal["max", "min"]]:
        return "map", "max"

    @property
    def metrics(self) -> Mapping[str, Literal["max", "min"]]:
        return {**super().metrics, "map50": "max", "map75": "max"}

    @property
    def names(self) -> tuple[str, ...]:
        return self.classes

    @property
    def needs(self) -> Needs:
        return Needs(losses=True)

    def resolve_answer(self, data: Dataset, inputs: Inputs) -> dict[str, Any]:
        for name in ("size", "teacher_size"):
            if getattr(inputs, name, None) is not None:
                raise RecipeError(
                    f"task.{name}: boxes are in pixels of the image; leave it out, and give data.size, which brings "
                    "images and boxes to one size"
                )
        if inputs.raw:
            return {}
        if "boxes" not in data.splits["train"].columns:
            raise RecipeError("the data hold no boxes; use voc, or another task")
        classes = self.classes or data.classes
        if not classes:
            raise RecipeError("task.classes: not known; give the names of the classes")
        return {"classes": classes} if classes != self.classes else {}

    def gives(self, inputs: Inputs) -> dict[str, Port]:
        if not self.classes:
            raise RecipeError("task.classes: not known; give the names of the classes")
        axes = {0: "batch"}
        return {
            "boxes": Port(kind="boxes", shape=(None, 4), axes=axes),
            "scores": Port(kind="logits", shape=(None, len(self.classes)), axes=axes),
        }

    def postprocessing(self) -> Postprocessing | None:
        return AllBoxes(len(self.classes), self.most)

    def meaning(self, inputs: Inputs, info: Mapping[str, Any]) -> dict[str, Any]:
        shape = next(iter(inputs.ports().values())).shape
        own = {"above": self.above, "overlap": self.overlap, "most": self.most}
        return {"answer": "boxes", "classes": list(self.classes), "height": shape[1], "width": shape[2], **own}

    def target(self, split: Split, indices: Any, traces: Traces) -> list[dict[str, Tensor]]:
        if "boxes" not in split.columns:
            return self.missing(len(indices))
        trace = traces.get(STUDENT)
        found = []
        for place, i in enumerate(indices):
            one = {
                "boxes": torch.as_tensor(split.columns["boxes"][i], dtype=torch.float32).reshape(-1, 4),
                "labels": torch.as_tensor(split.columns["box_labels"][i], dtype=torch.int64),
            }
            if trace is not None and trace.matrix is not None:
                one = moved(one, trace.matrix[place], split.columns["image"][i].shape[:2])
            found.append(one)
        return found

    def given(self, value: Any) -> list[dict[str, Tensor]]:
        if not isinstance(value, Sequence) or not all(isinstance(each, Mapping) for each in value):
            raise RecipeError(
                f"the target is a {type(value).__name__}; expected a list with, for each image, boxes [n, 4] xyxy in "
                "pixels and labels [n]"
            )
        found = []
        for place, each in enumerate(value):
            if not {"boxes", "labels"} <= set(each):
                raise RecipeError(f"target {place} holds {', '.join(map(str, each))}; expected boxes and labels")
            boxes = torch.as_tensor(each["boxes"], dtype=torch.float32)
            labels = torch.as_tensor(each["labels"])
            if boxes.numel() == 0:
                boxes = boxes.reshape(0, 4)
            if boxes.shape != (labels.numel(), 4) or labels.is_floating_point():
                raise RecipeError(
                    f"target {place}: boxes {list(boxes.shape)} and labels {labels.dtype} {list(labels.shape)}; "
                    "expected [n, 4] and class ids int64 [n]"
                )
            if not bool((boxes[:, 2:] > boxes[:, :2]).all()) or not bool(boxes.isfinite().all()):
                raise DataError(f"target {place} holds a box without an area; boxes are x0, y0, x1, y1: leave it out")
            if self.classes and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
                raise DataError(f"target {place} holds labels outside of 0 to {len(self.classes) - 1}")
            found.append({"boxes": boxes, "labels": labels.reshape(-1).long()})
        return found

    def missing(self, count: int) -> list[dict[str, Tensor]]:
        empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
        return [dict(empty) for _ in range(count)]

    def model_target(self, batch: Batch, reader: str) -> list[Any]:
        """What the image shows; None for images that are not labelled."""
        known = self.labelled(batch).tolist()
        return [each if labelled else None for each, labelled in zip(batch.target, known)]

    def outputs(self, raw: Outputs, batch: Batch, reader: str) -> Outputs:
        if raw.logits is not None or not (raw.values or raw.losses):
            raise RecipeError("the model gives no boxes; choose another one: small_detector, faster_rcnn")
        if RAW[0] not in raw.values:
            return raw
        values = {name: each for name, each in raw.values.items() if name not in RAW}
        chosen = self._chosen(*(raw.values[name] for name in RAW))
        return replace(raw, values=values | chosen)

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        if not outputs.losses:
            raise RecipeError("the model gives no losses, and task detection has none of its own; use another model")
        total = sum(each.float() for each in outputs.losses.values())
        assert isinstance(total, Tensor)
        return total

    def kept(self, batch: Batch, over: Over, reader: str = "student") -> Tensor | None:
        return self.labelled(batch) if over == "labelled" else None

    def labelled(self, batch: Batch) -> Tensor:
        if batch.labelled is None:
            return torch.ones(len(batch), dtype=torch.bool)
        found: Tensor = batch.labelled
        return found

    def zeros(self, batch: Batch) -> Outputs:
        return Outputs(values=padded(self.missing_scores(len(batch)), self.most))

    def missing_scores(self, count: int) -> list[dict[str, Tensor]]:
        """No detection in any of `count` images."""
        return [each | {"scores": torch.zeros(0)} for each in self.missing(count)]

    def from_file(self, arrays: Mapping[str, Tensor], batch: Batch, reader: str) -> Outputs:
        return Outputs(values=self._chosen(arrays["boxes"], arrays["scores"].sigmoid()))

    def tally(self) -> Tally:
        return BoxTally(self)

    def _chosen(self, boxes: Tensor, scores: Tensor) -> dict[str, Tensor]:
        return detections(boxes, scores, above=self.above, overlap=self.overlap, most=self.most)


class AllBoxes(nn.Module):
    """What a detector returned -> boxes `[B, N, 4]` in pixels and logits `[B, N, C]`, two outputs; of detections that
    were chosen already (two stages) these. A class is there with the sigmoid of its logit."""

    def __init__(self, classes: int, most: int) -> None:
        super().__init__()
        self.classes, self.most = classes, most

    def forward(self, raw: Any) -> tuple[Tensor, Tensor]:
        if isinstance(raw, Mapping):
            return raw["raw_boxes"], raw["raw_scores"]
        found = padded(raw, self.most)
        likely = one_hot_scores(found["scores"], found["labels"], self.classes)
        return found["boxes"], likely.logit(eps=1e-6)


class BoxTally(Tally):
    """mAP by faster-coco-eval; to a reference: mAP with those of its boxes as truth that have a score above 0.5. The
    boxes of all images are kept, as the metric asks for."""

    def __init__(self, answer: Boxes) -> None:
        self._answer = answer
        self._found: list[Shown] = []
        self._true: list[Shown] = []
        self._all: list[Shown] = []
        self._reference: list[Shown] = []

    def add(self, batch: Batch, raw: Outputs, reference: Outputs | None = None) -> None:
        found = shown(raw)
        for each, target, known in zip(found, batch.target, self._answer.labelled(batch).tolist()):
            if known:
                self._found.append(each)
                self._true.append(Shown(target["boxes"].cpu().numpy(), target["labels"].cpu().numpy()))
        if reference is not None:
            self._all += found
            self._reference += [each.above(TRUSTED) for each in shown(reference)]

    def scores(self) -> Scores:
        """map, map50, map75 as COCO defines them, over classes that are there; map by class."""
        names = self._answer.classes
        fidelity = {}
        if any(len(each.labels) for each in self._reference):
            fidelity = {"map_to_teacher": average_precision(self._reference, self._all, len(names))[0]["map"]}
        if not any(len(each.labels) for each in self._true):
            if not fidelity:
                raise DataError("there is no labelled image with a box to score on")
            return Scores({}, fidelity)
        quality, by_class = average_precision(self._true, self._found, len(names))
        return Scores(quality, fidelity, {names[i]: value for i, value in by_class.items()})


def shown(outputs: Outputs) -> list[Shown]:
    """The detections of each image; RecipeError where a predictor gives none."""
    values = outputs.values
    missing = [name for name in ("boxes", "scores", "labels", "valid") if name not in values]
    if missing:
        raise RecipeError(f"the predictor gives no {', '.join(missing)}; it is no detector in eval mode")
    rows = zip(*(values[name].detach().cpu() for name in ("boxes", "labels", "scores", "valid")))
    return [
        Shown(boxes[valid].numpy(), labels[valid].numpy(), scores[valid].double().numpy())
        for boxes, labels, scores, valid in rows
    ]


def moved(target: dict[str, Tensor], matrix: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    """Boxes as `matrix` `[2, 3]` moves their image of `size` (height, width), cut at its border; those of which less
    than a pixel is left in either direction go.

    >>> mirrored = torch.tensor([[-1.0, 0, 9], [0, 1, 0]])
    >>> one = {"boxes": torch.tensor([[0.0, 1, 4, 5]]), "labels": torch.tensor([2])}
    >>> moved(one, mirrored, (8, 10))["boxes"].tolist()
    [[6.0, 1.0, 10.0, 5.0]]
    """
    boxes = target["boxes"] - 0.5  # the matrix counts from middle to middle of pixels, boxes from edge to edge
    x, y = boxes[:, [0, 2, 0, 2]], boxes[:, [1, 1, 3, 3]]
    places = torch.stack([x, y, torch.ones_like(x)], -1) @ matrix.T + 0.5
    height, width = size
    limit = places.new_tensor([width, height])
    low, high = places.amin(1).clamp(min=0), torch.minimum(places.amax(1), limit)
    left = ((high - low) >= 1).all(-1)
    return {"boxes": torch.cat([low, high], -1)[left], "labels": target["labels"][left]}
