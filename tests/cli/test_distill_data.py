"""`decoct distill DATA`: one line from a folder to figures, and what it says first."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from decoct.cli.app import call


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rng, folder = np.random.default_rng(0), tmp_path / "photos"
    for number in range(80):
        name = ["dark", "light"][number % 2]
        (folder / name).mkdir(parents=True, exist_ok=True)
        pixels = np.clip(rng.normal(70 + 110 * (number % 2), 30, (12, 14, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name / f"{number}.jpg")
    (folder / ".ipynb_checkpoints").mkdir()
    monkeypatch.chdir(tmp_path)
    return folder


def test_from_a_folder_to_figures_and_an_answer(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["distill", "photos", "--preset", "fast", "--teacher", "mlp", "--student", "mlp"]
    assert call(words) == 0
    said = capsys.readouterr().out
    assert "80 images of 12x12, 2 classes (40 each)" in said
    assert "to train, validate and test, task image_classification" in said
    assert "runs/photos/report.html" in said
    results = json.loads(Path("runs/photos/results.json").read_text())
    assert [each["name"] for each in results["models"]] == ["teacher", "student_alone", "student"]
    assert call(["--json", "predict", "runs/photos", "photos"]) == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert len(answers) == 80
    assert np.mean([each["class"] in each["input"] for each in answers]) > 0.9
    assert call(words) == 0  # all is skipped
    captured = capsys.readouterr()
    assert "skipped" in captured.out + captured.err
    assert call([*words, "--student", "small_mobilenet"]) == 2  # its recipe is there and differs
    assert "runs/photos.yaml" in capsys.readouterr().err


def test_the_recipe_can_be_seen_and_what_is_wrong_is_said(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["distill", "photos", "--preset", "best", "--show"]) == 0
    text = capsys.readouterr().out
    assert "use: image_folder" in text
    assert "student_int8" in text
    assert not Path("runs").exists()
    for words, code, wanted in (
        (["distill", "nothing"], 3, "nothing is there"),
        (["distill", "photos", "--preset", "slow"], 2, "--preset slow"),
        (["predict", "photos", "a.jpg"], 3, "no run and no artifact"),
    ):
        assert call(words) == code
        assert wanted in capsys.readouterr().err
