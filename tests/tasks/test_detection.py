"""Detection: boxes that move with their images, the loss and mAP against oracles, the chain from folder to page."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import generalized_box_iou, sigmoid_focal_loss

import decoct as dc
from decoct.artifact import Artifact
from decoct.data.voc import VOC
from decoct.errors import DataError, RecipeError
from decoct.models.boxes import assigned, box_target_loss, detections, overlaps
from decoct.models.faster_rcnn import FasterRCNN
from decoct.models.interface import Interface
from decoct.models.small_detector import SmallDetector
from decoct.models.small_resnet import SmallResNet
from decoct.outputs import Batch, Outputs
from decoct.recipe.recipe import Recipe
from decoct.runner.checking import check
from decoct.store.layout import Layout
from decoct.tasks.answers.box_metrics import Shown, average_precision
from decoct.tasks.answers.boxes import Boxes, BoxTally, moved
from decoct.tasks.detection import Detection
from decoct.tasks.inputs.augment import Augment, augmented, placed

HEIGHT, WIDTH = 32, 48


def annotation(boxes: list[tuple[str, Any, Any, Any, Any]], before: str = "") -> str:
    corners = ("xmin", "ymin", "xmax", "ymax")
    objects = "".join(
        f"<object><name>{name}</name><bndbox>"
        + "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(corners, places))
        + "</bndbox></object>"
        for name, *places in boxes
    )
    return f"{before}<annotation>{objects}</annotation>"


def draw(root: Path, name: str, seed: int, *, split: str | None = None) -> None:
    """One bright square or dark bar on grey, sometimes neither."""
    drawn = np.random.default_rng(seed)
    image = (128 + drawn.integers(-9, 9, (HEIGHT, WIDTH, 3))).astype(np.uint8)
    boxes = []
    for kind, size, grey in (("square", (10, 10), 250), ("bar", (6, 20), 10)):
        if drawn.random() < 0.8:
            y, x = drawn.integers(0, HEIGHT - size[0]), drawn.integers(0, WIDTH - size[1])
            image[y : y + size[0], x : x + size[1]] = grey
            boxes.append((kind, x + 1, y + 1, x + size[1], y + size[0]))
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(root / "JPEGImages" / f"{name}.png")
    (root / "Annotations" / f"{name}.xml").write_text(annotation(boxes), encoding="utf-8")
    if split is not None:
        with (root / "ImageSets" / "Main" / f"{split}.txt").open("a", encoding="utf-8") as file:
            file.write(f"{name}\n")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    for split, count in (("train", 16), ("val", 6), ("test", 8)):
        for i in range(count):
            draw(root, f"{split}{i}", i + {"train": 0, "val": 100, "test": 200}[split], split=split)
    return root


# The folder


def one(tmp_path: Path, text: str | bytes) -> Path:
    draw(tmp_path, "a", 1, split="train")
    draw(tmp_path, "b", 2, split="test")
    file = tmp_path / "Annotations" / "a.xml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return tmp_path


def test_boxes_are_read_as_edges_of_pixels_and_scaled_with_their_image(shapes: Path) -> None:
    plain = VOC(path=shapes, validation=0.0).open()
    assert plain.classes == ("bar", "square")
    assert {name: len(split) for name, split in plain.splits.items()} == {"train": 16, "validation": 6, "test": 8}
    train = plain.splits["train"]
    for image, boxes, labels in zip(train.columns["image"], train.columns["boxes"], train.columns["box_labels"]):
        for (x0, y0, x1, y1), label in zip(boxes.astype(int), labels):
            inside = image[y0:y1, x0:x1].astype(int)
            if not label:  # bars are drawn last
                assert (inside == 10).all()
                assert (x1 - x0, y1 - y0) == (20, 6)
    half = VOC(path=shapes, size=(HEIGHT // 2, WIDTH // 4)).open().splits["train"]
    assert half.columns["image"].shape[1:] == (16, 12, 3)
    for small, large in zip(half.columns["boxes"], train.columns["boxes"]):
        np.testing.assert_allclose(small, large * np.array([0.25, 0.5, 0.25, 0.5]))
    assert len(set(train.keys.tolist())) == 16


def test_boxes_are_cut_at_the_border_and_those_without_area_dropped_and_counted(tmp_path: Path) -> None:
    boxes = [("x", 0, -5, 99, 4), ("x", 7, 7, 7, 9), ("x", 60, 1, 70, 5), ("x", 9, 9, 5, 12)]
    with pytest.warns(UserWarning, match=r"3 boxes without an area are dropped, such as .*a\.xml: box 2"):
        data = VOC(path=one(tmp_path, annotation(boxes)), validation=0.0).open()
    np.testing.assert_array_equal(data.splits["train"].columns["boxes"][0], [[0, 0, WIDTH, 4]])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('<!DOCTYPE a [<!ENTITY b "c">]>' + annotation([]), r"a\.xml: it declares a document type or entities"),
        (annotation([], "<!DOCTYPE annotation>"), r"a\.xml: it declares a document type"),
        ("<annotation>", r"a\.xml: no XML"),
        (annotation([("", 1, 1, 5, 5)]), r"a\.xml: box 1 has no name"),
        (annotation([("x", 1, 1, 5, 5), ("x", "one", 1, 5, 5)]), r"a\.xml: box 2 \(x\): xmin is 'one'"),
        (annotation([("x", 1, 1, "nan", 5)]), r"a\.xml: box 1 .*finite"),
        (annotation([("z", 1, 1, 5, 5)]), r"a\.xml: box 1 holds 'z'"),
    ],
)
def test_what_is_wrong_in_an_annotation_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        VOC(path=one(tmp_path, text), classes=("x", "square", "bar")).open()


def test_an_image_that_is_missing_is_named(tmp_path: Path) -> None:
    one(tmp_path, annotation([]))
    (tmp_path / "JPEGImages" / "a.png").unlink()
    with pytest.raises(DataError, match="no image 'a'"):
        VOC(path=tmp_path).open()


# Boxes that move


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.integers(0, 6), st.integers(1, 10), st.integers(1, 10))
def test_a_box_moves_as_the_pixels_in_it_do(seed: int, flip: bool, crop: int, width: int, height: int) -> None:
    drawn = np.random.default_rng(seed)
    x, y = int(drawn.integers(0, 20 - width)), int(drawn.integers(0, 14 - height))
    image = np.zeros((1, 14, 20, 1), np.uint8)
    image[0, y : y + height, x : x + width] = 255
    seeds, augment = np.array([seed], np.uint64), Augment(flip=flip, crop=crop)
    rows, columns = np.nonzero(augmented(image, seeds, augment)[0, ..., 0])
    target = {"boxes": torch.tensor([[x, y, x + width, y + height]]).float(), "labels": torch.tensor([1])}
    found = moved(target, torch.from_numpy(placed(seeds, augment, 20))[0], (14, 20))
    if not len(rows):
        assert len(found["boxes"]) == len(found["labels"]) == 0
    else:
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(found["boxes"], [expected], atol=1e-4)


# The loss


def some_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * 20
    return torch.cat([low, low + 2 + torch.rand(count, 2, generator=generator) * 18], 1)


GRID = torch.tensor([[4.0 + 8 * i, 4.0 + 8 * j, 8] for j in range(5) for i in range(5)] + [[8.0, 8, 16], [24, 24, 16]])


def test_overlaps_are_those_of_torchvision() -> None:
    a, b = some_boxes(30, 0), some_boxes(30, 1)
    torch.testing.assert_close(overlaps(a, b), generalized_box_iou(a, b).diagonal())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 6), st.integers(0, 10**6))
def test_points_answer_for_boxes_they_lie_near(count: int, seed: int) -> None:
    boxes = some_boxes(count, seed)
    owner = assigned(GRID, boxes)
    for point, box in zip(GRID, owner.tolist()):
        if box >= 0:
            middle = (boxes[box, :2] + boxes[box, 2:]) / 2
            level = 8 if (boxes[box, 2:] - boxes[box, :2]).max() <= 32 else 16
            assert point[2] == level
            away = (point[:2] - middle).abs().max()
            rivals = (GRID[GRID[:, 2] == level][:, :2] - middle).abs().amax(-1)
            assert away < 1.5 * level or away == rivals.min()
    if count == 1:
        assert (owner == 0).any(), "each box has a point"


def test_the_loss_is_focal_loss_and_giou_of_each_image_by_its_points() -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.cat([some_boxes(27, 3)[None], some_boxes(27, 4)[None]]).requires_grad_()
    scores = torch.randn(2, 27, 3, generator=generator).requires_grad_()
    boxes = torch.tensor([[1.0, 1, 14, 12], [20, 22, 38, 40]])
    full = {"boxes": boxes, "labels": torch.tensor([2, 0])}
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    owner = assigned(GRID, boxes)
    wanted = torch.zeros(27, 3)
    for place, box in enumerate(owner.tolist()):
        if box >= 0:
            wanted[place, full["labels"][box]] = 1
    found = owner >= 0
    first = sigmoid_focal_loss(scores[0], wanted, reduction="sum")
    first = first + (1 - generalized_box_iou(raw[0][found], boxes[owner[found]]).diagonal()).sum()
    second = sigmoid_focal_loss(scores[1], torch.zeros(27, 3), reduction="sum")
    got = box_target_loss(raw, scores, GRID, [full, empty])
    torch.testing.assert_close(got, (first / found.sum() + second) / 2)
    got.backward()
    assert raw.grad is not None
    assert raw.grad[0][found].abs().sum() > 0
    assert not raw.grad[0][~found].any()
    parts = [box_target_loss(raw[i : i + 1], scores[i : i + 1], GRID, [each]) for i, each in enumerate((full, empty))]
    torch.testing.assert_close(got, sum(parts) / 2)
    assert dc.functional.box_target_loss is box_target_loss


def test_shapes_that_cannot_be_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"raw_boxes .* expected"):
        box_target_loss(torch.zeros(1, 2, 4), torch.zeros(1, 3, 2), GRID, [])
    wrong = {"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": torch.tensor([2])}
    with pytest.raises(RecipeError, match="label 2, the model gives 2"):
        box_target_loss(torch.zeros(1, 27, 4), torch.zeros(1, 27, 2), GRID, [wrong])


# mAP and what is kept


def scene(count: int, seed: int) -> tuple[list[Shown], list[Shown]]:
    drawn = np.random.default_rng(seed)
    true, found = [], []
    for image in range(count):
        boxes = some_boxes(image % 4, seed + image).numpy()
        labels = drawn.integers(0, 3, len(boxes))
        true.append(Shown(boxes, labels))
        near = boxes + drawn.normal(0, 1.0, boxes.shape).astype(np.float32)
        extra = some_boxes(2, 77 + image).numpy()
        both = np.concatenate([near, extra])
        found.append(Shown(both, np.concatenate([labels, [0, 1]]), drawn.random(len(both))))
    return true, found


def test_map_is_that_of_torchmetrics() -> None:
    true, found = scene(20, 5)
    metric = MeanAveragePrecision(backend="faster_coco_eval", class_metrics=True)
    as_tensors = lambda each: {"boxes": torch.as_tensor(each.boxes), "labels": torch.as_tensor(each.labels)}  # noqa: E731
    metric.update(
        [as_tensors(each) | {"scores": torch.as_tensor(each.scores)} for each in found], list(map(as_tensors, true))
    )
    expected = metric.compute()
    quality, by_class = average_precision(true, found, 3)
    for ours, theirs in (("map", "map"), ("map50", "map_50"), ("map75", "map_75")):
        assert quality[ours] == pytest.approx(float(expected[theirs]), abs=1e-6)
    assert list(by_class.values()) == pytest.approx(expected["map_per_class"].tolist(), abs=1e-6)
    assert 0.05 < quality["map"] < 0.95
    assert average_precision(true, [Shown(e.boxes[:0], e.labels[:0], e.scores[:0]) for e in found], 3)[0]["map"] == 0


def said(shown: list[Shown], most: int = 8) -> Outputs:
    values = {
        "boxes": torch.zeros(len(shown), most, 4),
        "scores": torch.zeros(len(shown), most),
        "labels": torch.zeros(len(shown), most, dtype=torch.int64),
        "valid": torch.zeros(len(shown), most, dtype=torch.bool),
    }
    for i, each in enumerate(shown):
        n = len(each.labels)
        for name, array in (("boxes", each.boxes), ("labels", each.labels), ("scores", each.scores)):
            values[name][i, :n] = torch.as_tensor(array)
        values["valid"][i, :n] = True
    return Outputs(values=values)


def test_the_tally_counts_labelled_images_and_the_sure_boxes_of_the_reference() -> None:
    true, found = scene(12, 9)
    other = scene(12, 10)[1]
    labelled = torch.tensor([i % 3 > 0 for i in range(12)])
    target = [{"boxes": torch.as_tensor(e.boxes), "labels": torch.as_tensor(e.labels)} for e in true]
    tally = BoxTally(Boxes(classes=("a", "b", "c")))
    for part in (slice(0, 5), slice(5, 12)):
        batch = Batch({"student": torch.zeros(12, 3, 4, 4)[part]}, target[part], labelled[part])
        tally.add(batch, said(found[part]), said(other[part]))
    scores = tally.scores()
    kept = [i for i in range(12) if labelled[i]]
    assert scores.quality == average_precision([true[i] for i in kept], [found[i] for i in kept], 3)[0]
    sure = [Shown(e.boxes[e.scores > 0.5], e.labels[e.scores > 0.5]) for e in other]
    assert scores.fidelity["map_to_teacher"] == pytest.approx(average_precision(sure, found, 3)[0]["map"], abs=1e-6)
    with pytest.raises(DataError, match="no labelled image"):
        BoxTally(Boxes(classes=("a",))).scores()


def test_of_boxes_that_overlap_the_best_of_each_class_is_kept() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 1, 10, 10], [30, 30, 40, 40], [50, 50, 51, 51]]]).repeat(2, 1, 1)
    scores = torch.zeros(2, 4, 2)
    scores[0] = torch.tensor([[0.9, 0.0], [0.8, 0.7], [0.6, 0.0], [0.01, 0.01]])
    found = detections(boxes, scores, above=0.05, overlap=0.5, most=5)
    assert found["valid"].tolist() == [[True, True, True, False, False], [False] * 5]
    torch.testing.assert_close(found["scores"][0], torch.tensor([0.9, 0.7, 0.6, 0, 0]))
    assert found["labels"][0].tolist() == [0, 1, 0, 0, 0]
    torch.testing.assert_close(found["boxes"][0, :3], boxes[0, :3])
    layout = Layout.of(Outputs(values=found))
    rows = layout.encode(Outputs(values=found), seen=[1, 2], keys=[1, 2])
    for name, value in layout.decode(rows.cells).values.items():
        torch.testing.assert_close(value, found[name], rtol=0, atol=0)


# Models


def task_of(shapes: Path, **fields: Any) -> Detection:
    return Detection(**fields).resolve(VOC(path=shapes).open())


def test_detectors_and_other_nets_are_not_taken_for_each_other(shapes: Path) -> None:
    boxes = task_of(shapes).reading("student").interface
    with pytest.raises(RecipeError, match="gives no boxes"):
        SmallResNet().build(boxes)
    with pytest.raises(RecipeError, match="gives boxes, the task wants none"):
        SmallDetector().build(Interface(kind="image", shape=(3, 32, 32), outputs=10))
    with pytest.raises(RecipeError, match="with finest 4 give 3"):
        SmallDetector(finest=4).build(boxes)
    with pytest.raises(RecipeError, match=r"task\.size.*data\.size"):
        task_of(shapes, size=32)


def test_a_two_stage_detector_teaches_and_is_not_exported(shapes: Path, tmp_path: Path) -> None:
    steps = [{"use": "train", "name": "teacher", "inputs": {"model": "large"}, "budget": {"steps": 1}}]
    made = recipe(shapes, *steps, {"use": "export", "name": "file", "inputs": {"model": "teacher"}})
    with pytest.raises(RecipeError, match=r"steps\[1\]: .*faster_rcnn cannot be exported"):
        check(made)
    with pytest.raises(RecipeError, match="faster_rcnn cannot be exported"):
        made.run(tmp_path)


def test_losses_of_two_stages_leave_unlabelled_images_out_and_batch_norm_alone() -> None:
    torch.manual_seed(0)
    interface = Detection(classes=("a", "b"), shape=(3, HEIGHT, WIDTH), raw=True).reading("teacher").interface
    module = FasterRCNN(widths=(4, 6, 8), features=8, hidden=8).build(interface).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    images = torch.randn(3, 3, HEIGHT, WIDTH)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    full = {"boxes": torch.tensor([[2.0, 2, 20, 20]]), "labels": torch.tensor([1])}
    torch.manual_seed(1)
    some = module.losses(images, [full, None, empty])
    torch.manual_seed(1)
    alone = module.losses(images[[0, 2]], [full, empty])
    assert some == alone
    assert sum(some.values()).isfinite()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    nothing = sum(module.losses(images, [None] * 3).values())
    assert nothing.item() == 0
    nothing.backward()


# The chain

LEARN = {"budget": {"steps": 6}, "batch_size": 6, "log_every": 2}
PUPIL = {"model": "small", "teacher": "teacher"}
TERMS = [{"use": "box_targets", "above": 0.2, "on": "unlabelled"}, {"use": "task_loss"}]
STEPS = [
    {"use": "train", "name": "teacher", "inputs": {"model": "large"}, **LEARN},
    {"use": "label", "name": "labels", "inputs": {"teacher": "teacher"}, "views": 2, "batch_size": 6},
    {"use": "distill", "name": "student", "inputs": PUPIL, "labels": 5, "objective": TERMS, **LEARN},
    {
        "use": "distill",
        "name": "stored",
        "inputs": {"model": "small", "teacher": "labels"},
        "labels": 5,
        "objective": [{"use": "box_targets", "above": 0.2}],
        **LEARN,
    },
    {"use": "export", "name": "student_onnx", "inputs": {"model": "student"}},
    {"use": "quantize", "name": "student_int8", "inputs": {"model": "student"}},
    {
        "use": "benchmark",
        "inputs": {"teacher": "teacher", "student": "student_onnx", "int8": "student_int8", "stored": "stored"},
        "repeats": 3,
        "warmup": 1,
        "seconds": 0.3,
    },
]


def recipe(shapes: Path, *steps: Mapping[str, Any]) -> Recipe:
    return Recipe.parse(
        {
            "version": 1,
            "seed": 0,
            "task": {"use": "detection", "augment": {"flip": True, "crop": 2}},
            "data": {"use": "voc", "path": str(shapes)},
            "models": {
                "large": {"use": "faster_rcnn", "widths": [4, 6, 8], "features": 8, "hidden": 16},
                "small": {"use": "small_detector", "widths": [4, 6, 8], "head": 8, "finest": 4},
            },
            "steps": list(steps),
        }
    )


def test_the_chain_from_teacher_to_page(shapes: Path, tmp_path: Path) -> None:
    run = recipe(shapes, *STEPS).run(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["task"]["metric"] == "map"
    models = {each["name"]: each for each in results["models"]}
    for each in models.values():
        assert 0 <= each["quality"]["map"] <= each["quality"]["map50"] <= 1
    assert models["student"]["verified"]["max_abs_diff"] < 1e-4
    assert "mAP" in (tmp_path / "report.html").read_text(encoding="utf-8")
    first, second = (run.artifact(name).folder / "model.safetensors" for name in ("student", "stored"))
    assert first.read_bytes() != second.read_bytes()
    record = run.artifact("student_onnx").json("exported.json")
    assert record["outputs"] == ["boxes", "scores"]


class Stop(Exception):
    """Ends a run."""


def learned(artifact: Artifact) -> bytes:
    return (artifact.folder / "model.safetensors").read_bytes()


def test_a_student_that_was_stopped_goes_on_and_ends_alike(shapes: Path, tmp_path: Path) -> None:
    student = STEPS[2] | {"budget": {"steps": 24}, "checkpoint_seconds": 0.01}
    made = recipe(shapes, STEPS[0], student)
    whole = made.run(tmp_path / "whole").artifact("student")

    def stop(event: Mapping[str, Any]) -> None:
        if event["step"] == "student" and event["event"] == "progress" and event["done"] > 1:
            raise Stop

    with pytest.raises(Stop):
        made.run(tmp_path / "cut", watch=stop)
    again = made.run(tmp_path / "cut").artifact("student")
    assert learned(again) == learned(whole)
    assert dict(again.scores) == dict(whole.scores)


def test_a_student_learns_squares_and_bars(shapes: Path, tmp_path: Path) -> None:
    learn = {"budget": {"steps": 150}, "batch_size": 8, "optimizer": {"use": "adamw", "lr": 0.01}}
    run = recipe(shapes, {"use": "train", "name": "student", "inputs": {"model": "small"}, **learn}).run(tmp_path)
    assert run.artifact("student").scores["map50"] > 0.3
