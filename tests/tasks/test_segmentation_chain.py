"""Segmentation through the whole chain on images that a test makes: train, label, distil, export, quantize, measure."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import decoct as dc
from decoct.artifact import Artifact
from decoct.models.onnx_file import open_session
from decoct.recipe.recipe import Recipe

LEARN = {"budget": {"steps": 6}, "batch_size": 6, "log_every": 2}
PUPIL = {"model": "small", "teacher": "teacher"}
TASK_LOSS = {"use": "task_loss", "weight": 0.5}


def distil(name: str, *objective: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    return {"use": "distill", "name": name, "inputs": PUPIL, "objective": [*objective, TASK_LOSS], **LEARN, **fields}


STEPS = [
    {"use": "train", "name": "teacher", "inputs": {"model": "large"}, **LEARN},
    {"use": "label", "name": "labels", "inputs": {"teacher": "teacher"}, "views": 2, "batch_size": 6},
    distil("student", {"use": "kd", "weight": 0.5}),
    distil("stored", {"use": "kd", "weight": 0.5}, inputs={"model": "small", "teacher": "labels"}),
    distil("related", {"use": "dist"}),
    distil("channels", {"use": "channel_wise", "layers": {"up1": "up1"}}),
    distil("attention", {"use": "attention_transfer", "layers": {"down2": "down2"}}),
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


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares in three greys on 30 images of 12 x 16; a border of void."""
    root, drawn = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    for i in range(30):
        mask = drawn.integers(0, 3, (3, 4)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
        image = (80 * mask[..., None] + drawn.integers(0, 40, (12, 16, 3))).astype(np.uint8)
        mask[0] = 7
        for name, array in (("images", image), ("masks", mask)):
            (root / name).mkdir(exist_ok=True)
            Image.fromarray(array).save(root / name / f"{i:02}.png")
    return root


def recipe(scenes: Path, *steps: Mapping[str, Any], **fields: Any) -> Recipe:
    return Recipe.parse(
        {
            "version": 1,
            "seed": 0,
            "task": {"use": "segmentation", "augment": {"flip": True, "crop": 2}},
            "data": {"use": "image_masks", "path": str(scenes), "ignored": 7, "classes": ["low", "mid", "high"]},
            "models": {
                "large": {"use": "small_unet", "widths": [6, 8]},
                "small": {"use": "small_unet", "widths": [4, 6], "stem_stride": 2},
            },
            "steps": list(steps),
            **fields,
        }
    )


def test_the_chain_from_teacher_to_page(scenes: Path, tmp_path: Path) -> None:
    run = recipe(scenes, *STEPS).run(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["task"]["metric"] == "miou"
    models = {each["name"]: each for each in results["models"]}
    for each in models.values():
        assert 0 <= each["quality"]["miou"] <= each["quality"]["pixel_accuracy"] <= 1
        assert np.sum(each["confusion"]["matrix"]) == each["n"] * 11 * 16, "void is in no row"
    assert models["student"]["verified"]["max_abs_diff"] < 1e-4
    assert models["int8"]["verified"]["agreement"] > 0.8
    assert 0 <= models["stored"]["fidelity"]["agreement"] <= 1
    assert "Mean IoU" in (tmp_path / "report.html").read_text(encoding="utf-8")
    store = run.artifact("labels")
    rows = store.meta["statistics"]["rows"]
    assert store.scores["bytes"] / rows < 12 * 12 * 16 + 200
    layers = {name: run.artifact(name) for name in ("related", "channels", "attention")}
    assert len({(each.folder / "model.safetensors").read_bytes() for each in layers.values()}) == 3


class Stop(Exception):
    """Ends a run."""


def learned(artifact: Artifact) -> bytes:
    return (artifact.folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("taught_by", ["teacher", "labels"])
def test_a_student_that_was_stopped_goes_on_and_ends_alike(taught_by: str, scenes: Path, tmp_path: Path) -> None:
    student = distil("student", {"use": "kd"}, inputs={"model": "small", "teacher": taught_by})
    student |= {"budget": {"steps": 40}, "checkpoint_seconds": 0.01}
    made = recipe(scenes, *STEPS[: 1 if taught_by == "teacher" else 2], student)
    whole = made.run(tmp_path / "whole").artifact("student")

    def stop(event: Mapping[str, Any]) -> None:
        if event["step"] == "student" and event["event"] == "progress" and event["done"] > 1:
            raise Stop

    with pytest.raises(Stop):
        made.run(tmp_path / "cut", watch=stop)
    done: list[float] = []

    def note(event: Mapping[str, Any]) -> None:
        if event["step"] == "student" and event["event"] == "progress":
            done.append(event["done"])

    again = made.run(tmp_path / "cut", watch=note).artifact("student")
    assert max(done[:2]) > 1, "it went on, it did not begin again"
    assert learned(again) == learned(whole)
    assert dict(again.scores) == dict(whole.scores)


class Strided(nn.Module):
    """A map of a quarter of the pixels, in a mapping, as torchvision's networks give it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, width, 3, 2, 1), nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.head(self.stem(x).relu())}


def loader() -> DataLoader[tuple[Tensor, ...]]:
    drawn = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 3, (24, 12, 16), generator=drawn)
    images = masks[:, None] + 0.2 * torch.randn(24, 3, 12, 16, generator=drawn)
    masks[:, 0] = 255
    return DataLoader(TensorDataset(images, masks), batch_size=6)


def test_modules_and_loaders_of_ones_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher, student = Strided(8), Strided(4)
    objective = dc.KD(temperature=1.0) * 0.5 + dc.TaskLoss() * 0.5
    run = dc.distill(
        teacher=teacher,
        student=student,
        task="segmentation",
        train=loader(),
        val=loader(),
        objective=objective,
        epochs=1,
        out=tmp_path / "run",
    )
    artifact = Artifact.load(tmp_path / "run" / "01-student")
    assert {"miou", "pixel_accuracy", "cross_entropy"} <= set(run.scores)
    images = next(iter(loader()))[0]
    record = dc.export(artifact, tmp_path / "student.onnx", example=images, given={"student": Strided(4)})
    assert record["verified"]["max_abs_diff"] < 1e-5
    found = open_session(tmp_path / "student.onnx")({"image": images.numpy()})["logits"]
    assert found.shape == (6, 12, 16, 3)


def test_a_loop_of_ones_own_has_the_loss_of_the_definition() -> None:
    torch.manual_seed(0)
    teacher, student = Strided(8).eval(), Strided(4).eval()
    images, masks = next(iter(loader()))
    objective = 0.5 * dc.KD(temperature=2.0) + 0.5 * dc.TaskLoss()
    with dc.Distiller(teacher, student, objective, task="segmentation") as distiller:
        loss, _ = distiller(images, masks)
    own, other = (F.interpolate(net(images)["out"], (12, 16), mode="bilinear") for net in (student, teacher))
    p, log_q = (other / 2).softmax(1), (own / 2).log_softmax(1)
    kd = 4 * (p * (p.log() - log_q)).sum(1).mean()
    wanted = 0.5 * kd + 0.5 * F.cross_entropy(own, masks, ignore_index=255)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
