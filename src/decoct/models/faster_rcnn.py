"""Faster R-CNN of torchvision over a small backbone: two stages, boxes with their losses inside."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.memory import MOST_STAGES, Side, Width
from decoct.models.base import Interface, Model
from decoct.models.boxes import padded
from decoct.models.checks import require_kind
from decoct.models.small_unet import Convolutions
from decoct.outputs import Needs, Outputs


class FasterRCNN(Model):
    """torchvision's Faster R-CNN over two levels of a small backbone, built from scratch.

    `widths`: channels of the stem and of three stages at strides 2, 4, 8 and so on, the last two of which are searched;
    `features`: channels of both levels; `anchors`: the side of the squares searched, in pixels, for each of the two
    levels; `hidden`: width of the layers that judge a region; `most`: detections of an image at most. Nothing is
    resized inside. It cannot be exported: what it does hangs on the values that it meets. Feature paths:
    `net.backbone.stages.0`, ..., in the coordinates of the image. Ren et al. 2015, arXiv 1506.01497.
    """

    use: ClassVar[str] = "faster_rcnn"
    widths: tuple[Width, ...] = Field(default=(16, 32, 64), min_length=3, max_length=MOST_STAGES)
    features: Width = 48
    anchors: tuple[tuple[Side, ...], tuple[Side, ...]] = ((8, 16), (24, 40))
    hidden: Width = 128
    most: Width = 100

    def build(self, interface: Interface, *, pretrained: bool = True) -> nn.Module:
        require_kind(interface, self.use, "image", boxes=True)
        return FasterRCNNNet(self, interface.shape, interface.classes)

    def run(self, module: nn.Module, inputs: Any, interface: Interface, needs: Needs, target: Any = None) -> Outputs:
        from decoct.capture import capture

        assert isinstance(module, FasterRCNNNet)
        with capture(module, sorted(needs.features)) as features:
            losses: dict[str, Tensor] = {}
            if needs.losses:
                losses = module.losses(inputs, target)
            values = {} if module.training else padded(module(inputs), self.most)
        regions = frozenset(name for name in features if name.startswith(REGIONS))
        return Outputs(values=values, features=dict(features), losses=losses, apart=regions)


REGIONS = "net.roi_heads"  # whose features have a row for each region


class FasterRCNNNet(nn.Module):
    """`[B, C, H, W]` -> for each image `boxes` `[n, 4]`, `scores` `[n]`, `labels` `[n]` counted from 0."""

    def __init__(self, spec: FasterRCNN, shape: tuple[int, ...], classes: int) -> None:
        from torchvision.models.detection import FasterRCNN as Torchvision
        from torchvision.models.detection.faster_rcnn import TwoMLPHead
        from torchvision.models.detection.rpn import AnchorGenerator
        from torchvision.ops import MultiScaleRoIAlign

        super().__init__()
        channels, height, width = shape
        ratios = ((0.6, 1.0, 1.6),) * 2
        self.net = Torchvision(
            _Backbone(channels, spec.widths, spec.features),
            min_size=min(height, width),
            max_size=max(height, width),
            image_mean=[0.0] * channels,
            image_std=[1.0] * channels,
            rpn_anchor_generator=AnchorGenerator(sizes=spec.anchors, aspect_ratios=ratios),
            rpn_pre_nms_top_n_train=300,
            rpn_pre_nms_top_n_test=300,
            rpn_post_nms_top_n_train=150,
            rpn_post_nms_top_n_test=100,
            rpn_batch_size_per_image=128,
            box_roi_pool=MultiScaleRoIAlign(["0", "1"], output_size=5, sampling_ratio=2),
            box_head=TwoMLPHead(spec.features * 25, spec.hidden),
            box_predictor=_Predictor(spec.hidden, classes + 1),
            box_batch_size_per_image=64,
            box_detections_per_img=spec.most,
        )

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        if torch.compiler.is_exporting():
            raise RecipeError(
                "faster_rcnn cannot be exported: what it does hangs on the values that it meets; let it teach, and "
                "export a one-stage detector, such as small_detector"
            )
        found = self.net(list(x))
        return [{**each, "labels": each["labels"] - 1} for each in found]

    def losses(self, x: Tensor, target: Any) -> dict[str, Tensor]:
        """torchvision's four losses over the images that have a target (None: has none), by name."""
        known = [(image, each) for image, each in zip(x, target) if each is not None]
        if not known:
            return {"none": sum((each.reshape(-1)[:0].sum() for each in self.parameters()), x.new_zeros(()))}
        targets = [{"boxes": each["boxes"], "labels": each["labels"] + 1} for _, each in known]
        with _learning(self.net):
            losses: dict[str, Tensor] = self.net([image for image, _ in known], targets)
        return losses


@contextmanager
def _learning(net: Any) -> Iterator[None]:
    """torchvision computes losses in train mode alone; its batch norms stay as they are."""
    parts = (net, net.rpn, net.roi_heads)
    before = [each.training for each in parts]
    try:
        for each in parts:
            each.training = True
        yield
    finally:
        for each, was in zip(parts, before):
            each.training = was


class _Backbone(nn.Module):
    """Two maps of one width, by name, at the strides of the last two stages."""

    def __init__(self, channels: int, widths: tuple[int, ...], features: int) -> None:
        super().__init__()
        self.out_channels = features
        self.stem = Convolutions(channels, widths[0], 2)
        self.stages = nn.ModuleList(Convolutions(a, b, 2) for a, b in pairwise(widths))
        self.fine = nn.Conv2d(widths[-2], features, 1)
        self.coarse = nn.Conv2d(widths[-1], features, 1)
        self.smooth = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        levels = [self.stem(x)]
        for stage in self.stages:
            levels.append(stage(levels[-1]))
        coarse, fine = self.coarse(levels[-1]), self.fine(levels[-2])
        fine = fine + nn.functional.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
        return OrderedDict([("0", self.smooth(fine)), ("1", coarse)])


class _Predictor(nn.Module):
    """What judges a region: logits of the classes and of none, and a box for each of them."""

    def __init__(self, hidden: int, classes: int) -> None:
        super().__init__()
        self.scores = nn.Linear(hidden, classes)
        self.boxes = nn.Linear(hidden, 4 * classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.scores(x), self.boxes(x)
