"""A small one-stage detector without anchors."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.memory import MOST_STAGES, Width
from decoct.models.base import Interface, Model
from decoct.models.boxes import box_target_loss
from decoct.models.calls import call
from decoct.models.checks import require_kind
from decoct.models.small_unet import Convolutions
from decoct.outputs import Needs, Outputs


class SmallDetector(Model):
    """A one-stage detector without anchors: at each point of two grids a box and a score for each class, apart.

    `widths`: channels of the stem and of each stage, each at half the size of the one before; the last two are the
    grids, the coarser added to the finer. `head`: channels of what makes boxes and scores. `finest`: the stride of the
    finer grid, the other has twice as much. Feature paths: `stem`, `stages.0`, ..., `fine`, `coarse`.
    Its loss is `box_target_loss`. After Tian et al. 2019 (FCOS), arXiv 1904.01355, without centre-ness.
    """

    use: ClassVar[str] = "small_detector"
    becomes_onnx: ClassVar[bool] = True
    widths: tuple[Width, ...] = Field(default=(16, 24, 32, 48), min_length=3, max_length=MOST_STAGES)
    head: Width = 32
    finest: Literal[4, 8] = 8

    def build(self, interface: Interface, *, pretrained: bool = True) -> nn.Module:
        require_kind(interface, self.use, "image", boxes=True)
        stages = 3 if self.finest == 4 else 4
        if len(self.widths) != stages:
            raise RecipeError(
                f"widths: {list(self.widths)}; with finest {self.finest} give {stages}: the stem's and the stages'"
            )
        return SmallDetectorNet(interface.shape[0], interface.classes, self.widths, self.head)

    def run(self, module: nn.Module, inputs: Any, interface: Interface, needs: Needs, target: Any = None) -> Outputs:
        from decoct.capture import capture

        with capture(module, sorted(needs.features)) as features:
            values = dict(call(module, interface.kind, inputs))
        losses = {}
        if needs.losses:
            known = [place for place, each in enumerate(target) if each is not None]
            boxes, scores = (values[name][known] for name in ("raw_boxes", "raw_scores"))
            losses["detection"] = box_target_loss(boxes, scores, values["points"], [target[place] for place in known])
        if not module.training:  # what the answer chooses from
            values |= {"candidates": values["raw_boxes"], "likely": values["raw_scores"].sigmoid()}
        values["points"] = values["points"].expand(len(inputs), -1, -1)  # stored values have one entry a sample
        return Outputs(values=values, features=dict(features), losses=losses)


class SmallDetectorNet(nn.Module):
    """`[B, C, H, W]` -> `raw_boxes` `[B, N, 4]` xyxy in pixels, `raw_scores` logits `[B, N, classes]`, `points`
    `[N, 3]` x, y and stride."""

    def __init__(self, channels: int, classes: int, widths: tuple[int, ...], head: int) -> None:
        super().__init__()
        self.classes = classes
        self.stem = Convolutions(channels, widths[0], 2)
        self.stages = nn.ModuleList(Convolutions(a, b, 2) for a, b in pairwise(widths))
        self.coarse = nn.Conv2d(widths[-1], head, 1)
        self.fine = nn.Conv2d(widths[-2], head, 1)
        self.towers = nn.ModuleList(Convolutions(head, head) for _ in range(2))
        self.boxes = nn.ModuleList(nn.Conv2d(head, 4, 1) for _ in range(2))
        self.scores = nn.ModuleList(nn.Conv2d(head, classes, 1) for _ in range(2))
        self.strides = (2 ** (len(widths) - 1), 2 ** len(widths))
        for each in self.scores:
            nn.init.normal_(each.weight, std=0.01)  # type: ignore[arg-type]
            nn.init.constant_(each.bias, -math.log(99.0))  # type: ignore[arg-type]  # few points show something

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        levels = [x]
        for stage in self.stages:
            levels.append(stage(levels[-1]))
        coarse = self.coarse(levels[-1])
        fine = self.fine(levels[-2])
        fine = fine + F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
        boxes, scores, points = [], [], []
        for grid, stride, tower, box, score in zip((fine, coarse), self.strides, self.towers, self.boxes, self.scores):
            seen = tower(grid)
            places = _places(grid, stride)
            reach = F.softplus(_flat(box(seen))) * (2.0 * stride)
            corners = torch.cat([places[:, :2] - reach[..., :2], places[:, :2] + reach[..., 2:]], dim=-1)
            boxes.append(corners)
            scores.append(_flat(score(seen)))
            points.append(places)
        return {"raw_boxes": torch.cat(boxes, 1), "raw_scores": torch.cat(scores, 1), "points": torch.cat(points)}


def _flat(maps: Tensor) -> Tensor:
    """`[B, C, h, w]` -> `[B, h·w, C]`."""
    return maps.flatten(2).transpose(1, 2)


def _places(grid: Tensor, stride: int) -> Tensor:
    """`[h·w, 3]`: the middle of each cell in pixels, and the stride."""
    rows, columns = torch.meshgrid(
        torch.arange(grid.shape[-2], device=grid.device),
        torch.arange(grid.shape[-1], device=grid.device),
        indexing="ij",
    )
    x, y = ((each.reshape(-1).float() + 0.5) * stride for each in (columns, rows))
    return torch.stack([x, y, torch.full_like(x, float(stride))], dim=-1)
