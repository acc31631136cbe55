"""`apply prune` and `apply quantize` on a saved artifact, with what they changed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from decoct.artifact import Artifact
from decoct.cli import app as cli
from decoct.errors import BudgetMissed, DataError, RecipeError
from decoct.models.onnx_file import open_session
from decoct.recipe.recipe import Recipe
from decoct.runner.apply import apply, changed

NET = {"use": "small_resnet", "width": 8}
TRAINED = {
    "task": {"use": "image_classification"},
    "models": {"small": NET},
    "steps": [{"use": "train", "name": "student", "inputs": {"model": "small"}, "budget": {"steps": 4}}],
}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    Recipe.parse({**TRAINED, "data": {"use": "digits", "limit": 150}}).run(folder)
    return folder / "01-student"


def test_prune_by_ratio_from_the_command_line(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "apply",
        "prune",
        str(student),
        "ratio=0.5",
        "round_to=1",
        "budget.steps=2",
        "--out",
        str(tmp_path / "cut"),
    ]
    assert cli.call(["--json", *words]) == 0
    record = json.loads(capsys.readouterr().out)
    made, rows = Artifact.load(tmp_path / "cut"), {each[""]: each for each in record["changed"]}
    assert made.json("compression.json")["scheme"]["use"] == "channels"
    assert made.json("compression.json")["scheme"]["ratio"] == 0.5
    assert set(rows) == {"parameters", "nonzero", "macs", "bytes"}
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (student, made.folder)]
    assert [rows["bytes"][when] for when in ("before", "after")] == [f"{each:,}" for each in sizes]
    assert sizes[1] < 0.4 * sizes[0]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_quantize_calibrates_on_the_split_that_is_named(student: Path, tmp_path: Path, split: str) -> None:
    made = apply("quantize", student, tmp_path / "int8", ["calibration_samples=20"], calibration=split)
    record = made.json("exported.json")
    assert record["quantization"]["calibration"] == {"split": split, "samples": 20}
    before, after = next((each["before"], each["after"]) for each in changed(made, student) if each[""] == "bytes")
    assert int(before.replace(",", "")) == (student / "model.safetensors").stat().st_size
    assert int(after.replace(",", "")) == made.file("model.onnx").stat().st_size


def test_quantize_calibrates_on_a_folder_of_data(tmp_path: Path) -> None:
    images, labels = load_digits(return_X_y=True)
    folders = {"data": 1.0, "dark": 0.25}
    for name, scale in folders.items():
        for index in range(120):
            pixels = (images[index].reshape(8, 8) * 15.9 * scale).astype(np.uint8)
            place = tmp_path / name / "train" / str(labels[index] % 2)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{index}.png")
    data = {"use": "image_folder", "path": str(tmp_path / "data"), "channels": 1}
    Recipe.parse({**TRAINED, "data": data}).run(tmp_path / "run")
    student, ranges = tmp_path / "run" / "01-student", {}
    feed = {"image": np.zeros((1, 1, 8, 8), np.uint8)}
    for name in folders:
        made = apply("quantize", student, tmp_path / f"int8-{name}", calibration=str(tmp_path / name))
        assert np.isfinite(next(iter(open_session(made.file("model.onnx"))(feed).values()))).all()
        ranges[name] = made.file("model.onnx").read_bytes()
    assert ranges["data"] != ranges["dark"]


@pytest.mark.parametrize(
    ("step", "calibration", "words"),
    [
        ("quantize", "test", "--calibration test: no folder and no split"),
        ("quantize", "trian", "did you mean train"),
        ("prune", "train", "prune does not calibrate"),
    ],
)
def test_a_calibration_that_cannot_be_is_refused(
    student: Path, tmp_path: Path, step: str, calibration: str, words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        apply(step, student, tmp_path / "out", calibration=calibration)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("full", [False, True])
def test_a_folder_that_gives_no_other_data_is_refused(student: Path, tmp_path: Path, full: bool) -> None:
    other = tmp_path / "other"
    other.mkdir()
    if full:
        (other / "a.txt").write_text("a")
    with pytest.raises(DataError, match=f"--calibration {other}: .*train, validation"):
        apply("quantize", student, tmp_path / "out", calibration=str(other))
    assert [each.name for each in tmp_path.iterdir()] == ["other"]


def test_orders_that_recipes_refuse_are_refused_here_too(student: Path, tmp_path: Path) -> None:
    cut = ["recover={use: none}", "ratio=0.5", "round_to=1"]
    apply("prune", student, tmp_path / "cut", cut)
    with pytest.raises(RecipeError, match="'prune' was cut and has not recovered"):
        apply("quantize", tmp_path / "cut", tmp_path / "int8", recipe=student.parent / "recipe.yaml")
    apply("prune", student, tmp_path / "kept", [*cut[1:], "budget.steps=2"])
    apply("quantize", tmp_path / "kept", tmp_path / "int8", recipe=student.parent / "recipe.yaml")
    with pytest.raises(RecipeError, match="quantized already"):
        apply("quantize", tmp_path / "int8", tmp_path / "again", recipe=student.parent / "recipe.yaml")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["cut", "int8", "kept"]


def test_a_step_that_is_refused_leaves_nothing_and_one_that_is_stopped_its_checkpoints(
    student: Path, tmp_path: Path
) -> None:
    def stop(event: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(BudgetMissed):
        apply("quantize", student, tmp_path / "out", ["max_size_bytes=10"])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        apply("quantize", student, tmp_path / "out", watch=stop)
    assert [each.name for each in tmp_path.iterdir()] == [".out.applying"]


def test_a_scheme_setting_that_is_wrong_is_named_with_the_nearest(student: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="ratio"):
        apply("prune", student, tmp_path / "out", ["ratio=1.5"])
    with pytest.raises(RecipeError, match=r"did you mean .*ratio"):
        apply("prune", student, tmp_path / "out", ["scheme.ration=0.5"])
    assert not (tmp_path / "out").exists()
