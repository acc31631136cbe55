"""First hours: ordinary folders and files, shrunk, from `decoct distill` to `decoct predict`."""

import csv
import gzip
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import decoct as dc
from decoct.cli.app import call

QUICK = ["--preset", "fast"]


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def distilled(capsys: pytest.CaptureFixture[str], data: str, *words: str) -> tuple[str, dict[str, Any]]:
    """What the command said first, and what the run measured."""
    assert call(["distill", data, *QUICK, "--out", "run", *words]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert Path("run/report.html").is_file()
    results = json.loads(Path("run/results.json").read_text())
    assert {"teacher", "student_alone", "student"} <= {each["name"] for each in results["models"]}
    return said, {each["name"]: each for each in results["models"]}


def asked(capsys: pytest.CaptureFixture[str], *what: str) -> list[dict[str, Any]]:
    assert call(["--json", "predict", "run", *what]) == 0, capsys.readouterr().err
    answers: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["answers"]
    return answers


def shrunk(source: Path, target: Path, places: Sequence[int]) -> list[list[str]]:
    """Some rows of a CSV file, quoted as they were, with its header."""
    content = source.read_bytes()
    text = (gzip.decompress(content) if source.suffix == ".gz" else content).decode()
    rows = list(csv.reader(io.StringIO(text, newline="")))
    kept = [rows[0], *(rows[1 + place] for place in places)]
    with target.open("w", newline="") as file:
        csv.writer(file).writerows(kept)
    return kept


def test_photos_of_people_in_a_table(data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for person in ("s1", "s2"):
        for path in sorted((data_root / "orl-faces" / person).glob("*.p*")):
            picture = Path("photos") / f"{person}-{path.stem}.jpg"
            picture.parent.mkdir(exist_ok=True)
            Image.open(path).convert("RGB").resize((32, 32)).save(picture)
            rows.append(f"photos/{picture.name},{person}")
    Path("photos.csv").write_text("\n".join(["picture,person", *rows]) + "\n")
    said, _ = distilled(capsys, "photos.csv", "--teacher", "mlp", "--student", "mlp")
    assert "20 images of 32x32, 2 classes (10 each)" in said
    answers = asked(capsys, "photos/s1-1.jpg", "photos")
    assert len(answers) == 21
    assert set(answers[0]["probabilities"]) == {"s1", "s2"}
    assert sum(answers[0]["probabilities"].values()) == pytest.approx(1)


def test_quoted_questions_of_77_kinds(data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bank").mkdir()
    source = data_root / "banking77"
    rows = shrunk(source / "train.csv", Path("bank/train.csv"), range(0, 10003, 40))
    train = {row[1] for row in rows[1:]}
    tests = shrunk(source / "test.csv", Path("bank/test.csv"), range(0, 3080, 40))
    with Path("bank/test.csv").open("w", newline="") as file:
        csv.writer(file).writerows([tests[0], *(row for row in tests[1:] if row[1] in train)])
    said, models = distilled(capsys, "bank", "--teacher", "bilstm", "--student", "bilstm")
    assert f"{len(rows) + len(tests) - 2} texts, 77 classes" in said
    assert "text_classification" in said
    assert len(models["student"]["confusion"]["labels"]) == len(train)
    [answer] = asked(capsys, 'My card, the new one, still hasn\'t "arrived"')
    assert answer["class"] in train


def test_the_census_with_a_test_file_of_its_own(data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("adult").mkdir()
    for part, every in (("train", 60), ("test", 60)):
        source = data_root / "adult" / f"adult-{part}.csv.gz"
        shrunk(source, Path(f"adult/adult-{part}.csv"), range(0, 16000, every))
    said, models = distilled(capsys, "adult")
    assert "tabular_classification" in said
    assert models["student"]["quality"]["auc"] > 0.7
    text = Path("adult/adult-test.csv").read_text()
    rows = list(csv.reader(io.StringIO(text, newline="")))  # without names, the answer last
    with Path("people.csv").open("w", newline="") as file:
        csv.writer(file).writerows(row[:-1] for row in rows)
    answers = asked(capsys, "people.csv")
    assert len(answers) == models["student"]["n"] == len(rows)


def test_wines_between_semicolons(data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = data_root / "wine-quality" / "winequality-red.csv"
    names = [
        f'"{each}"' for each in ("acid", "sharp", "citric", "sugar", "salt", "free", "total", "dense", "ph", "sulfur")
    ]
    lines = [line.replace(",", ";") for line in source.read_text().splitlines()]
    Path("wine.csv").write_text("\n".join([";".join([*names, '"alcohol"', '"quality"']), *lines]) + "\n")
    said, models = distilled(capsys, "wine.csv")
    assert f"{len(lines):,} rows of 11 columns" in said
    row = dict(zip([*(each.strip('"') for each in names), "alcohol"], map(float, lines[0].split(";"))))
    answers = asked(capsys, "wine.csv")
    assert len(answers) == len(lines)
    assert dc.load("run").predict(row) == dc.load("run").predict([row])[0]
    assert models["student"]["quality"]


def test_a_folder_of_photos_beside_what_editors_leave(data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for person in ("s3", "s4", "s5"):
        for path in sorted((data_root / "orl-faces" / person).glob("*.p*")):
            place = Path("people") / person / f"{path.stem}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.open(path).resize((24, 24)).save(place)
    for left in (".ipynb_checkpoints", "__MACOSX"):
        Path("people", left).mkdir()
        shutil.copy(place, Path("people", left, "copy.png"))
    Path("people/s3/Thumbs.db").write_bytes(b"no picture")
    said, models = distilled(capsys, "people", "--teacher", "mlp", "--student", "mlp")
    assert "30 images of 24x24, 3 classes (10 each)" in said
    assert models["student"]["confusion"]["labels"] == ["s3", "s4", "s5"]
    answers = asked(capsys, "people/s4")
    assert len(answers) == 10
    assert np.isfinite([each["probability"] for each in answers]).all()
