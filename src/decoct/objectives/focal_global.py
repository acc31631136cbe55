"""Focal and global distillation for detectors: what lies in boxes, where it is strong, and how places relate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.objectives._features import PairedObjective, PairNetwork
from decoct.objectives._maps import equal_pair
from decoct.objectives._numeric import full_precision, promote, refuse_temperature, shape
from decoct.objectives._shapes import Boxes, Loss, Maps
from decoct.objectives.adapters import Widths
from decoct.objectives.base import Probe
from decoct.outputs import Batch
from decoct.training.clock import Clock


@full_precision
def focal_global_loss(
    student: Maps,
    teacher: Maps,
    boxes: Boxes,
    *,
    temperature: float = 0.5,
    alpha: float = 0.001,
    beta: float = 0.0005,
    gamma: float = 0.001,
) -> Loss:
    """The focal part: α·foreground + β·background + γ·attention, each a sum over a sample, mean over B.

    Maps `[B, C, H, W]` of one shape, `boxes` `[B, M, 4]` x₀, y₀, x₁, y₁ as shares of the picture, those without area
    left out. S = H·W·softmax over places of (mean over channels of |x|)/T, A = C·softmax over channels of (mean over
    places of |x|)/T. Foreground: Σ m·S_t·A_t·(s − t)², m = 1/area of the smallest box at that place, with sides rounded
    outwards to whole places; background: the same with m = 1/(number of places in no box) there. Attention:
    Σ|S_s − S_t| + Σ|A_s − A_t|. No gradient through S_t, A_t. 0 at student == teacher. Convention: the authors'
    code, whose global part the Term adds with its learned context blocks.

    Yang et al. 2022 (FGD), arXiv 2111.11837, equations 1 to 8.

    >>> x = torch.randn(1, 2, 4, 4)
    >>> focal_global_loss(x, x, torch.tensor([[[0.0, 0.0, 0.5, 0.5]]])).item()
    0.0
    """
    refuse_temperature("focal_global_loss", temperature)
    s, t = equal_pair("focal_global_loss", student, teacher)
    if s.ndim != 4 or boxes.ndim != 3 or boxes.shape[::2] != (len(s), 4):
        raise RecipeError(
            f"focal_global_loss: student {shape(student)} and boxes {shape(boxes)}; allowed: [B, C, H, W] and [B, M, 4]"
        )
    inside, outside = box_masks(boxes.to(s.dtype), s.shape[2], s.shape[3])
    places_s, channels_s = _strengths(s, temperature)
    places_t, channels_t = _strengths(t, temperature)
    gap = (s - t).square() * channels_t[:, :, None, None] * places_t.unsqueeze(1)
    foreground, background = ((gap * m.unsqueeze(1)).sum() for m in (inside, outside))
    attention = (places_s - places_t).abs().sum() + (channels_s - channels_t).abs().sum()
    return (alpha * foreground + beta * background + gamma * attention) / max(len(s), 1)


def _strengths(x: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Attention over places `[B, H, W]`, mean 1, and over channels `[B, C]`, mean 1."""
    strength = x.abs()
    places = torch.softmax((strength.mean(1) / temperature).flatten(1), -1).reshape(len(x), *x.shape[2:])
    channels = torch.softmax(strength.mean((2, 3)) / temperature, -1)
    return places * math.prod(x.shape[2:]), channels * x.shape[1]


def box_masks(boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """`[B, H, W]` twice: 1/area of the smallest box at each place (0 in none), and 1/count of the places in none.

    `boxes` `[B, M, 4]` as shares of the picture; a box covers the places from the floor of its start to the ceiling of
    its end, both included, and its area is counted in places, also in those beyond the border, as in the authors' code.

    >>> inside, outside = box_masks(torch.tensor([[[0.0, 0.0, 0.4, 0.4]]]), 4, 4)
    >>> inside[0, 0], outside[0, 3, 3].item()
    (tensor([0.1111, 0.1111, 0.1111, 0.0000]), 0.1428571492433548)
    """
    x0, y0, x1, y1 = boxes.unbind(-1)
    real = (x1 > x0) & (y1 > y0)
    left, top = (x0 * width).floor(), (y0 * height).floor()
    right, bottom = (x1 * width).ceil(), (y1 * height).ceil()
    rows = torch.arange(height, device=boxes.device)[:, None]
    columns = torch.arange(width, device=boxes.device)
    inside = boxes.new_zeros(len(boxes), height, width)
    for i in range(boxes.shape[1]):
        a, b, c, d = (each[:, i, None, None] for each in (left, right, top, bottom))
        held = (columns >= a) & (columns <= b) & (rows >= c) & (rows <= d) & real[:, i, None, None]
        inside = torch.maximum(inside, torch.where(held, 1 / ((b + 1 - a) * (d + 1 - c)).clamp(min=1), 0.0))
    outside = (inside == 0).to(boxes.dtype)
    return inside, outside / outside.sum((1, 2), keepdim=True).clamp(min=1)


class FocalGlobal(PairedObjective):
    """Imitates a detector's features in and outside of boxes, where they are strong, and their relations (Yang 2022).

    `alpha`, `beta`, `gamma`, `delta`: weights of foreground, background, attention and global relation; `temperature`
    of the attention. Boxes come from the target, a mapping with "boxes" `[B, M, 4]` in pixels of the student's input.
    A 1×1 convolution leads to the teacher's width; the context blocks (one a side) are learned.
    """

    use: ClassVar[str] = "focal_global"
    supervised: ClassVar[bool] = True
    widths: ClassVar[Widths] = "linear"
    temperature: float = Field(default=0.5, gt=0)
    alpha: float = Field(default=0.001, ge=0)
    beta: float = Field(default=0.0005, ge=0)
    gamma: float = Field(default=0.001, ge=0)
    delta: float = Field(default=0.000005, ge=0)

    def network(self, student: Tensor, teacher: Tensor, probe: Probe, path: str) -> PairNetwork:
        if student.shape != teacher.shape or teacher.ndim != 4:
            raise RecipeError(f"focal_global: {shape(student)} and {shape(teacher)}; allowed: maps [B, C, H, W]")
        return FocalAndGlobal(self, teacher.shape[1])


class Context(nn.Module):
    """Global context block: every place gets the weighted mean of all, put through a bottleneck (Cao et al. 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        middle = max(1, width // 2)
        self.weigh = nn.Conv2d(width, 1, 1)
        self.add = nn.Sequential(
            nn.Conv2d(width, middle, 1), nn.LayerNorm([middle, 1, 1]), nn.ReLU(), nn.Conv2d(middle, width, 1)
        )
        last = self.add[3]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.softmax(self.weigh(x).flatten(2), -1)
        context = (x.flatten(2) @ weight.mT).unsqueeze(-1)
        result: Tensor = x + self.add(context)
        return result


class FocalAndGlobal(PairNetwork):
    """The focal loss, and the squared distance of both sides' maps with their context."""

    def __init__(self, objective: FocalGlobal, width: int) -> None:
        super().__init__()
        self.objective = objective
        self.own, self.theirs = Context(width), Context(width)

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None, batch: Batch, clock: Clock) -> Tensor:
        objective = self.objective
        student, teacher = promote(student, teacher)
        focal = focal_global_loss(
            student,
            teacher,
            _boxes(objective, batch).to(student.device, student.dtype),
            temperature=objective.temperature,
            alpha=objective.alpha,
            beta=objective.beta,
            gamma=objective.gamma,
        )
        apart = (self.own(student) - self.theirs(teacher)).square().sum() / max(len(student), 1)
        return focal + objective.delta * apart


def _boxes(objective: FocalGlobal, batch: Batch) -> Tensor:
    """The target's boxes as shares of the student's picture."""
    target, image = batch.target, batch.inputs.get("student")
    if not isinstance(target, Mapping) or not isinstance(target.get("boxes"), Tensor):
        raise RecipeError(f"{objective.label}: the target holds no boxes [B, M, 4]; it is for tasks that find objects")
    if not isinstance(image, Tensor) or image.ndim != 4:
        raise RecipeError(
            f"{objective.label}: the student's inputs are no pictures [B, C, H, W], and boxes are in pixels"
        )
    height, width = image.shape[2:]
    x0, y0, x1, y1 = target["boxes"].unbind(-1)
    return torch.stack([x0 / width, y0 / height, x1 / width, y1 / height], -1)
