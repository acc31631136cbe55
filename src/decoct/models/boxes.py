"""Boxes: overlaps, assignment of points to them, the loss of raw heads, and which of many boxes are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from decoct.errors import RecipeError

Target = Mapping[str, Tensor]
"""Of one image: `boxes` float `[n, 4]` xyxy in pixels, `labels` int64 `[n]`."""
RawBoxes: TypeAlias = Tensor
"""`[B, N, 4]`; the function itself checks these shapes."""
RawScores: TypeAlias = Tensor
"""`[B, N, C]`."""
Points: TypeAlias = Tensor
"""`[N, 3]`."""
Loss: TypeAlias = Tensor
"""One number."""
SIDES = 4.0
"""Boxes of at most so many strides belong to the finer level."""
RADIUS = 1.5
"""Strides around the centre of a box within which points answer for it."""


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Generalised intersection over union of boxes `[..., 4]` with boxes of the same shape, -1 to 1.

    Rezatofighi et al. 2019, arXiv 1902.09630.

    >>> overlaps(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 2, 2]])).item()
    1.0
    """
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    both = (high - low).clamp(min=0).prod(-1)
    either = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - both
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return both / either.clamp(min=1e-6) - (hull - either) / hull.clamp(min=1e-6)


def assigned(points: Tensor, boxes: Tensor) -> Tensor:
    """int64 `[N]`: the box that each point answers for, -1 for none.

    `points` `[N, 3]` x, y, stride; `boxes` `[n, 4]`. A box of up to four strides of the finest level belongs to that
    level, of up to four of the next to the next, and so on; points of its level in it and within 1.5 strides of its
    centre answer for it, and always the one that is nearest to the centre. Of several boxes the smallest wins.

    >>> points = torch.tensor([[4.0, 4, 8], [12.0, 4, 8]])
    >>> assigned(points, torch.tensor([[0.0, 0, 7, 8]])).tolist()
    [0, -1]
    """
    if not len(boxes):
        return torch.full((len(points),), -1, device=points.device)
    place, stride = points[:, None, :2], points[:, 2]
    levels = stride.unique()
    size = (boxes[:, 2:] - boxes[:, :2]).amax(-1)
    level = levels[(size[:, None] > SIDES * levels[:-1]).sum(-1)]
    own = stride[:, None] == level
    away = (place - (boxes[:, :2] + boxes[:, 2:]) / 2).abs().amax(-1)
    inside = (place > boxes[:, :2]).all(-1) & (place < boxes[:, 2:]).all(-1)
    nearest = torch.zeros_like(own).scatter(0, away.masked_fill(~own, torch.inf).argmin(0)[None], True)
    taken = (own & inside & (away < RADIUS * stride[:, None])) | nearest
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1).expand(len(points), -1)
    # the point nearest to one box stays with it, whatever other box lies there too
    area = torch.where(nearest, area - area.max() - 1, area).masked_fill(~taken, torch.inf)
    smallest, found = area.min(-1)
    return torch.where(smallest == torch.inf, -1, found)


def box_target_loss(raw_boxes: RawBoxes, raw_scores: RawScores, points: Points, targets: Sequence[Target]) -> Loss:
    """The loss of raw heads against boxes: focal loss of the scores plus 1 − GIoU of the boxes, mean over images.

    `raw_boxes` `[B, N, 4]` xyxy in pixels, `raw_scores` logits `[B, N, C]`, `points` `[N, 3]` (x, y, stride) that
    answer, `targets` one for each image: `boxes` `[n, 4]` and `labels` `[n]`, n 0 or more. Of an image both sums are
    divided by the number of points that answer for a box (1 at least), which is known before any forward pass.

    Lin et al. 2017, arXiv 1708.02002 (α 0.25, γ 2); centres as in Tian et al. 2019, arXiv 1904.01355.
    RecipeError where the shapes disagree or a label is no class.

    >>> empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    >>> points = torch.tensor([[4.0, 4.0, 8.0]])
    >>> box_target_loss(torch.zeros(1, 1, 4), torch.full((1, 1, 2), -50.0), points, [empty]).item() < 1e-9
    True
    """
    if raw_boxes.ndim != 3 or raw_boxes.shape[:2] != raw_scores.shape[:2] or raw_boxes.shape[1:2] != points.shape[:1]:
        raise RecipeError(
            f"raw_boxes {list(raw_boxes.shape)}, raw_scores {list(raw_scores.shape)} and points {list(points.shape)}; "
            "expected [B, N, 4], [B, N, C] and [N, 3]"
        )
    if len(targets) != len(raw_boxes):
        raise RecipeError(f"{len(targets)} targets for {len(raw_boxes)} images; give one for each")
    raw_boxes, raw_scores = raw_boxes.float(), raw_scores.float()
    total = (raw_boxes.sum() + raw_scores.sum()) * 0.0
    for boxes, scores, target in zip(raw_boxes, raw_scores, targets):
        total = total + _of_image(boxes, scores, points, target)
    return total / max(len(targets), 1)


def _of_image(boxes: Tensor, scores: Tensor, points: Tensor, target: Target) -> Tensor:
    true, labels = target["boxes"].to(boxes), target["labels"].to(boxes.device)
    if len(labels) and int(labels.max()) >= scores.shape[-1]:
        raise RecipeError(f"a box has label {int(labels.max())}, the model gives {scores.shape[-1]} classes")
    owner = assigned(points, true)
    found = owner >= 0
    wanted = torch.zeros_like(scores)
    wanted[found, labels[owner[found]]] = 1.0
    cross = F.binary_cross_entropy_with_logits(scores, wanted, reduction="none")
    p = scores.sigmoid()
    missed = torch.where(wanted > 0, 1 - p, p)
    focal = (torch.where(wanted > 0, 0.25, 0.75) * missed**2 * cross).sum()
    edges = (1 - overlaps(boxes[found], true[owner[found]])).sum()
    return (focal + edges) / found.sum().clamp(min=1)


def detections(boxes: Tensor, scores: Tensor, *, above: float, overlap: float, most: int) -> dict[str, Tensor]:
    """What is kept of boxes `[B, N, 4]` with probabilities `[B, N, C]`: by class the best of those that overlap.

    Non-maximum suppression on the CPU or the device of the boxes, at most `most` an image, the best first, of scores
    above `above`. `boxes` `[B, K, 4]`, `scores` `[B, K]`, `labels` int64 `[B, K]` and `valid` bool `[B, K]`, filled up
    with 0.

    >>> twice = torch.tensor([[[0.0, 0, 4, 4], [0, 0, 4, 5]]])
    >>> detections(twice, torch.tensor([[[0.9], [0.8]]]), above=0.1, overlap=0.5, most=2)["valid"].tolist()
    [[True, False]]
    """
    from torchvision.ops import batched_nms

    found = []
    for own, likely in zip(boxes.float(), scores.float()):
        place, label = (likely > above).nonzero(as_tuple=True)
        score = likely[place, label]
        kept = batched_nms(own[place], score, label, overlap)[:most]
        found.append({"boxes": own[place][kept], "scores": score[kept], "labels": label[kept]})
    return padded(found, most)


def padded(found: Sequence[Mapping[str, Tensor]], most: int) -> dict[str, Tensor]:
    """Detections of each image, the best first, as tensors of `most` places; see `detections`."""
    boxes, scores, labels = ([each[name][:most] for each in found] for name in ("boxes", "scores", "labels"))

    def filled(parts: list[Tensor]) -> Tensor:
        return torch.stack([F.pad(each, (0, 0) * (each.ndim - 1) + (0, most - len(each))) for each in parts])

    valid = [torch.ones(len(each), dtype=torch.bool, device=each.device) for each in scores]
    return {
        "boxes": filled(boxes),
        "scores": filled(scores),
        "labels": filled(labels),
        "valid": filled(valid),
    }


def one_hot_scores(scores: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Probabilities `[B, K, C]` of detections with a score and a label each."""
    return F.one_hot(labels, classes).to(scores) * scores[..., None]
