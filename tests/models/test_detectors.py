"""Detectors: both build, run, save and load alike; what they give in train and in eval mode."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from decoct.artifact import Artifact, writing
from decoct.models.base import Model, Network
from decoct.models.faster_rcnn import FasterRCNN
from decoct.models.interface import Interface
from decoct.models.saving import load_model, save_model
from decoct.models.small_detector import SmallDetector
from decoct.outputs import Batch, Needs
from decoct.spec import Choice
from decoct.tasks.detection import Detection

BOXES = Detection(classes=("a", "b", "c"), shape=(3, 40, 56), raw=True).reading("student").interface
IMAGES = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
TRUTH = [
    {"boxes": torch.tensor([[4.0, 4, 20, 18], [30, 10, 50, 38]]), "labels": torch.tensor([0, 2])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]
SPECS = [
    SmallDetector(widths=(4, 6, 8), head=8, finest=4),
    SmallDetector(widths=(4, 6, 8, 8), head=8),
    FasterRCNN(widths=(4, 6, 8), features=8, hidden=8, most=7),
]
every = pytest.mark.parametrize("spec", SPECS, ids=["fine", "coarse", "two_stages"])


@every
def test_losses_reach_every_parameter(spec: Model) -> None:
    torch.manual_seed(0)
    module = spec.build(BOXES)
    found = Network(module, spec, BOXES).run(IMAGES, Needs(losses=True), TRUTH)
    total = sum(found.losses.values())
    assert isinstance(total, torch.Tensor)
    assert total.isfinite()
    total.backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in module.parameters())
    assert Choice("decoct.models").validate(spec.plain()) == spec


@every
def test_saved_and_loaded_it_says_the_same(spec: Model, tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = spec.build(BOXES).eval()
    network = Network(module, spec, BOXES)
    with torch.no_grad():
        before = network.run(IMAGES, Needs()).tensors()
    with writing(tmp_path / "made", kind="model", name="made", key="k", lineage={}) as draft:
        save_model(draft, module, spec, BOXES, side="student", probe=lambda one: list(before), given={})
    again = load_model(Artifact.load(tmp_path / "made"), given={})
    with torch.no_grad():
        after = Network(again.module.eval(), again.spec, BOXES).run(IMAGES, Needs()).tensors()
    assert len(after) == len(before)
    assert all(torch.equal(a, b) for a, b in zip(after, before))


def test_points_are_the_middles_of_cells_and_boxes_lie_around_them() -> None:
    found = SPECS[0].build(BOXES).eval()(IMAGES)
    points, boxes = found["points"], found["raw_boxes"]
    assert len(points) == 10 * 14 + 5 * 7
    assert points[0].tolist() == [2, 2, 4]
    assert points[-1].tolist() == [52, 36, 8]
    assert (boxes[..., :2] < points[:, :2]).all()
    assert (boxes[..., 2:] > points[:, :2]).all()


def test_labels_of_two_stages_count_from_0_and_are_padded() -> None:
    torch.manual_seed(0)
    spec = FasterRCNN(widths=(4, 6, 8), features=8, hidden=8, most=7)
    with torch.no_grad():
        values = Network(spec.build(BOXES).eval(), spec, BOXES).run(IMAGES, Needs()).values
    assert values["boxes"].shape == (2, 7, 4)
    assert values["labels"].min() >= 0
    assert values["labels"].max() <= 2
    assert not values["scores"][~values["valid"]].any()


def test_the_interface_of_boxes_knows_its_classes() -> None:
    assert BOXES.boxes
    assert BOXES.classes == 3
    assert not Interface(kind="image", shape=(3, 8, 8), outputs=2).boxes


def test_features_of_regions_are_not_taken_for_those_of_samples() -> None:
    """Of 2 images there are as many regions as are found: their features do not go by sample."""
    task = Detection(classes=("a", "b", "c"), shape=(3, 40, 56), raw=True)
    torch.manual_seed(0)
    network = Network(SPECS[2].build(BOXES).eval(), SPECS[2], BOXES)
    batch = Batch({"student": IMAGES}, task.answer.missing(2))
    paths = frozenset({"net.backbone@input", "net.roi_heads.box_head"})
    with torch.no_grad():
        found = task.forward(network, batch, Needs(features=paths), "student")
    assert found.apart == {"net.roi_heads.box_head"}
    regions = found.features["net.roi_heads.box_head"]
    first = replace(found, features=found.features | {"net.roi_heads.box_head": regions[:2]}).take(np.array([0]), 2)
    assert len(first.features["net.backbone@input"]) == 1
    assert "net.roi_heads.box_head" not in first.features
