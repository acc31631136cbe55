"""Segmentation through the whole chain on images that a test makes: train, label, distil, export, quantize, measure."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from decoct.artifact import Artifact
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
