"""Maps: one class for each pixel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from decoct.data.base import Dataset, Split
from decoct.errors import DataError, RecipeError
from decoct.models.calls import Postprocessing, logits_of
from decoct.models.interface import Port
from decoct.outputs import Batch, Dense, Outputs
from decoct.store.codecs.base import Codec
from decoct.store.codecs.dense import DenseCodec
from decoct.store.codecs.top_k import TopKCodec
from decoct.tasks.answers.base import Answer, Over, Scores, Tally, Traces, dense, in_loss_type
from decoct.tasks.answers.classes import IGNORED
from decoct.tasks.answers.metrics import confusion_matrix, log_softmax
from decoct.tasks.inputs.base import STUDENT, Inputs

KEPT = TopKCodec(k=3, dtype="float16", temperatures=(1.0,))
"""How a store keeps a map unless another way is asked for: 12 bytes a pixel for 9 to 16 classes. For temperatures near
1; at 4 three of ten classes are not enough."""


class Maps(Answer):
    """One class for each pixel; logits `[B, H, W, classes]`, target int64 `[B, H, W]`, -100 where it must not be used.

    `classes`: names, from the data where left out; `ignored`: the id of pixels of a mask that belong to no class;
    `grid`: height and width of the answer. The loss is the cross-entropy, mean over all pixels of the batch that have a
    class. A model that answers on a grid of its own is brought to `grid` by bilinear interpolation of its logits, here
    and in the exported file alike. Pixels that augmentation moved in from outside of the image do not count.
    """

    per_pixel: ClassVar[bool] = True
    item: ClassVar[str] = "pixel"
    target_columns: ClassVar[tuple[str, ...]] = ("mask",)
    classes: tuple[str, ...] = ()
    ignored: int = 255
    grid: tuple[int, int] | None = Field(default=None)

    @property
    def metric(self) -> tuple[str, Literal["max", "min"]]:
        return "miou", "max"

    @property
    def metrics(self) -> Mapping[str, Literal["max", "min"]]:
        return {**super().metrics, "pixel_accuracy": "max", "cross_entropy": "min"}

    @property
    def names(self) -> tuple[str, ...]:
        return self.classes

    def renamed(self, names: tuple[str, ...]) -> dict[str, Any]:
        return {"classes": names} if names != self.classes else {}

    def resolve_answer(self, data: Dataset, inputs: Inputs) -> dict[str, Any]:
        if inputs.raw:
            return {}
        masks = data.splits["train"].columns.get("mask")
        if masks is None:
            raise RecipeError("the data hold no masks; use image_masks, or another task")
        classes = self.classes or data.classes
        if not classes:
            raise RecipeError("task.classes: not known; give the names of the classes")
        grid = tuple(masks.shape[1:])
        if self.grid not in (None, grid):
            raise RecipeError(f"task.grid: {self.grid}, and the masks are {grid}; leave it out")
        return {"classes": classes, "grid": grid} if (classes, grid) != (self.classes, self.grid) else {}

    def gives(self, inputs: Inputs) -> dict[str, Port]:
        return {"logits": self._port(None)}

    def shipped(self, inputs: Inputs) -> dict[str, Port]:
        return {"logits": self._port(self.grid)}

    def postprocessing(self) -> Postprocessing | None:
        return OnGrid(self.grid)

    def meaning(self, inputs: Inputs, info: Mapping[str, Any]) -> dict[str, Any]:
        return {"answer": "maps", "output": next(iter(self.shipped(inputs))), "classes": list(self.classes)}

    def target(self, split: Split, indices: np.ndarray, traces: Traces) -> Tensor:
        if "mask" not in split.columns:
            return self.missing(len(indices))
        masks = split.columns["mask"][indices].astype(np.int64)
        target = self.given(torch.from_numpy(masks))
        trace = traces.get(STUDENT)
        if trace is not None and trace.matrix is not None:
            target = moved(target, trace.matrix, IGNORED)
        if split.labelled is not None:
            target[~torch.from_numpy(split.labelled[indices])] = IGNORED
        return target

    def given(self, value: Any) -> Tensor:
        target = torch.as_tensor(value)
        if target.is_floating_point() or target.ndim != 3:
            raise RecipeError(
                f"the target is {target.dtype} {list(target.shape)}; expected class ids, int64 [batch, height, width]"
            )
        target = target.long()
        target = torch.where(target == self.ignored, IGNORED, target)
        if self.classes and target.device.type == "cpu":
            wrong = target[(target >= len(self.classes)) | ((target < 0) & (target != IGNORED))]
            if len(wrong):
                raise DataError(
                    f"masks hold {wrong.unique()[:5].tolist()}; classes are 0 to {len(self.classes) - 1}, and "
                    f"{self.ignored} where there is none (task.ignored)"
                )
        return target

    def missing(self, count: int) -> Tensor:
        if self.grid is None:
            raise RecipeError("task.grid: not known, and samples have no masks; give (height, width) of the answer")
        return torch.full((count, *self.grid), IGNORED)

    def outputs(self, raw: Outputs, batch: Batch, reader: str) -> Outputs:
        logits, width = raw.logits, len(self.classes)
        if logits is None or logits.ndim != 4 or (width and logits.shape[-1] != width):
            raise RecipeError(
                f"the model returned logits {None if logits is None else list(logits.shape)}; expected one map for "
                f"each class, [batch, {width or 'classes'}, height, width]"
            )
        grid = self.grid or tuple(batch.target.shape[1:])
        if logits.shape[1:3] == grid:
            return raw
        moved_logits = on_grid(logits.movedim(-1, 1), grid).movedim(1, -1)
        return replace(raw, distribution=Dense(moved_logits))

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        assert outputs.logits is not None
        logits = in_loss_type(outputs.logits).movedim(-1, 1)
        if logits.shape[2:] != batch.target.shape[1:]:
            raise RecipeError(
                f"maps of {list(logits.shape[2:])} pixels and masks of {list(batch.target.shape[1:])}; set task.grid"
            )
        labelled = self.labelled(batch)
        target = torch.where(labelled, batch.target, IGNORED)
        total = F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
        return total / labelled.sum().clamp(min=1)

    def kept(self, batch: Batch, over: Over, reader: str = "student") -> Tensor | None:
        if over == "labelled":
            return self.labelled(batch)
        trace = batch.trace.get(reader)
        if trace is None or trace.matrix is None:
            return None
        return sources(trace.matrix, (batch.target.shape[1], batch.target.shape[2]))[2]

    def labelled(self, batch: Batch) -> Tensor:
        counted: Tensor = batch.target != IGNORED
        return counted if batch.labelled is None else counted & batch.labelled[:, None, None]

    def zeros(self, batch: Batch) -> Outputs:
        grid = self.grid or tuple(batch.target.shape[1:])
        return Outputs(Dense(torch.zeros(len(batch), *grid, max(1, len(self.classes)))))

    def codec(self, keep: Codec) -> Codec:
        """All classes of all pixels are large: unless another way is asked for (another `dtype`, `top_k`), the three
        most likely classes of each pixel and the mass of the others are kept."""
        return KEPT if keep == DenseCodec() else keep

    def from_file(self, arrays: Mapping[str, Tensor], batch: Batch, reader: str) -> Outputs:
        return Outputs(Dense(next(iter(arrays.values()))))

    def tally(self) -> Tally:
        return MapTally(self)

    def shapes_of(self, target: Any) -> dict[str, Any]:
        return {"grid": self.grid or tuple(target.shape[1:])}

    def widths_of(self, width: int) -> dict[str, Any]:
        if self.classes and len(self.classes) != width:
            raise RecipeError(f"task.classes: {len(self.classes)} names, the model gives {width} logits")
        return {"classes": self.classes or tuple(map(str, range(width)))}

    def _port(self, grid: tuple[int, int] | None) -> Port:
        if not self.classes:
            raise RecipeError("task.classes: not known; give the names of the classes")
        return Port(kind="logits", shape=(*(grid or (None, None)), len(self.classes)), axes={0: "batch"})


class MapTally(Tally):
    """Intersection over union from one confusion matrix, pixel accuracy, cross-entropy; agreement and KL to a reference
    over all pixels that count. Nothing is kept of a pixel."""

    def __init__(self, answer: Maps) -> None:
        self._answer = answer
        self._matrix: np.ndarray | None = None
        self._loss = self._kl = 0.0
        self._same = self._compared = 0

    def add(self, batch: Batch, raw: Outputs, reference: Outputs | None = None) -> None:
        logits = dense(raw)
        log_q, classes = log_softmax(logits), logits.shape[-1]
        counted = self._answer.labelled(batch).cpu().numpy()
        labels = batch.target.cpu().numpy()[counted]
        if labels.size and labels.max() >= classes:
            raise DataError(f"labels reach {labels.max()}, the model gives {classes} classes")
        found = confusion_matrix(logits.argmax(axis=-1)[counted], labels, classes)
        self._matrix = found if self._matrix is None else self._matrix + found
        self._loss -= float(log_q[counted][np.arange(len(labels)), labels].sum())
        if reference is not None:
            self._compare(logits, log_q, dense(reference), self._answer.kept(batch, "items"))

    def _compare(self, logits: np.ndarray, log_q: np.ndarray, reference: np.ndarray, kept: Tensor | None) -> None:
        if logits.shape != reference.shape:
            raise RecipeError(
                f"student logits {list(logits.shape)} and teacher logits {list(reference.shape)} differ in shape"
            )
        where = np.ones(logits.shape[:-1], bool) if kept is None else kept.cpu().numpy()
        log_p = log_softmax(reference)
        p = np.exp(log_p)
        with np.errstate(invalid="ignore"):
            terms = np.where(p > 0, p * (log_p - log_q), 0.0)
        self._same += int((logits.argmax(axis=-1) == reference.argmax(axis=-1))[where].sum())
        self._kl += float(terms.sum(axis=-1)[where].sum())
        self._compared += int(where.sum())

    def scores(self) -> Scores:
        """miou: mean over the classes that occur in labels or answers of intersection / union; pixel_accuracy;
        cross_entropy in nats. Fidelity: agreement, the share of pixels answered alike, and mean KL(reference ‖ own)."""
        fidelity = {}
        if self._compared:
            fidelity = {"agreement": self._same / self._compared, "kl": max(0.0, self._kl / self._compared)}
        if self._matrix is None or not self._matrix.sum():
            if not fidelity:
                raise DataError("there is no labelled pixel to score on")
            return Scores({}, fidelity)
        matrix, total = self._matrix, int(self._matrix.sum())
        both = np.diag(matrix)
        either = matrix.sum(axis=0) + matrix.sum(axis=1) - both
        iou = {i: float(both[i] / either[i]) for i in range(len(matrix)) if either[i]}
        quality = {
            "miou": float(np.mean(list(iou.values()))),
            "pixel_accuracy": float(both.sum() / total),
            "cross_entropy": self._loss / total,
        }
        names = self._answer.classes or tuple(map(str, range(len(matrix))))
        return Scores(quality, fidelity, {names[i]: value for i, value in iou.items()}, (names, matrix))


class OnGrid(nn.Module):
    """What a network returned, maps `[B, classes, h, w]` -> logits `[B, H, W, classes]` on the answer's grid."""

    def __init__(self, grid: tuple[int, int] | None) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, raw: Any) -> Tensor:
        logits = logits_of(raw)
        return (logits if self.grid is None else on_grid(logits, self.grid)).movedim(1, -1)


def on_grid(maps: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Maps `[B, C, h, w]` at another size: bilinear, corners not aligned; as they are where they have the size.

    >>> on_grid(torch.tensor([[[[0.0, 1.0]]]]), (1, 4)).tolist()
    [[[[0.0, 0.25, 0.75, 1.0]]]]
    """
    if maps.shape[-2:] == grid:
        return maps
    return F.interpolate(maps, size=list(grid), mode="bilinear", align_corners=False)


def moved(masks: Tensor, matrix: Tensor, outside: int) -> Tensor:
    """Masks `[B, H, W]` as `matrix` moves their images: each pixel takes the class of the nearest one that it shows.

    Exact where pixels go to pixels; `outside` where a pixel shows nothing of the image.

    >>> mirrored = torch.tensor([[[-1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]])
    >>> moved(torch.tensor([[[1, 2, 3]]]), mirrored, 9).tolist()
    [[[3, 2, 1]]]
    """
    rows, columns, inside = sources(matrix, (masks.shape[1], masks.shape[2]))
    sample = torch.arange(len(masks), device=masks.device)[:, None, None]
    return torch.where(inside, masks[sample, rows, columns], outside)


def sources(matrix: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Of each pixel of images that `matrix` `[B, 2, 3]` moved, the row and column of the original image (`size`) that
    lies nearest to what it shows, int64 `[B, H, W]`, and bool whether that lies inside."""
    height, width = size
    matrix = matrix.double()
    (a, b, x), (c, d, y) = (row.unbind(-1) for row in matrix.unbind(-2))
    x, y, a, b, c, d = (each[:, None, None] for each in (x, y, a, b, c, d))
    across = torch.arange(width, device=matrix.device) - x
    down = torch.arange(height, device=matrix.device)[:, None] - y
    determinant = a * d - b * c
    columns = ((d * across - b * down) / determinant).round().long()
    rows = ((a * down - c * across) / determinant).round().long()
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    return rows.clamp(0, height - 1), columns.clamp(0, width - 1), inside
