"""Asking a file: what goes in is what the data sets read, what comes out is what scoring counts."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seqeval.metrics.sequence_labeling
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

import decoct as dc
from decoct.data.base import Split
from decoct.data.images import Pictures
from decoct.errors import DataError, RecipeError
from decoct.models.boxes import detections
from decoct.serving import predict

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (23, 31, 3), np.uint8)


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(PHOTO), "JPEG", exif=exif)


CONTENTS = {
    "colour": encoded(Image.fromarray(PHOTO), "PNG"),
    "grey": encoded(Image.fromarray(PHOTO[..., 0]), "PNG"),
    "palette": encoded(Image.fromarray(PHOTO).quantize(16), "PNG"),
    "transparent": encoded(Image.fromarray(np.dstack([PHOTO, PHOTO[..., :1]]), "RGBA"), "PNG"),
    "clear grey": encoded(Image.fromarray(np.dstack([PHOTO[..., 0], PHOTO[..., 1]]), "LA"), "PNG"),
    "16 bits": encoded(Image.fromarray(RNG.integers(0, 65536, (23, 31)).astype(np.uint16)), "PNG"),
    "16 bits, one clear": encoded(
        Image.fromarray(np.arange(713, dtype=np.uint16).reshape(23, 31) * 90), "PNG", transparency=900
    ),
    **{f"turned {each}": turned(each) for each in range(2, 9)},
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [7, 40])
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_photo_becomes_what_the_data_set_would_have_read(content: bytes, size: int, channels: Any) -> None:
    wanted = Pictures(channels).read(content, "here", size)
    how = {"channels": channels, "height": size, "width": size, "fit": "crop"}
    found, _ = predict._picture(content, how)
    np.testing.assert_array_equal(found, wanted)


@given(
    arrays.arrays(np.float32, (12, 4), elements=st.integers(0, 40).map(float)),
    arrays.arrays(np.float32, (12, 3), elements=st.floats(-6, 6, width=32), unique=True),
)
def test_boxes_are_chosen_as_after_torch(corners: np.ndarray, logits: np.ndarray) -> None:
    boxes = np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:] + 1], 1)
    wanted = detections(
        torch.from_numpy(boxes)[None], torch.from_numpy(logits)[None].double().sigmoid(), above=0.3, overlap=0.5, most=5
    )
    answer = {"classes": ["a", "b", "c"], "above": 0.3, "overlap": 0.5, "most": 5, "width": 50, "height": 50}
    found = predict._boxes(answer, boxes, logits, (100, 50))["boxes"]
    kept = wanted["valid"][0]
    assert [each["class"] for each in found] == ["abc"[label] for label in wanted["labels"][0][kept].tolist()]
    scaled = wanted["boxes"][0][kept].numpy() * [2, 1, 2, 1]
    np.testing.assert_allclose([each["box"] for each in found], scaled.reshape(-1, 4), atol=0.06)


NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=9))
def test_entities_are_those_of_seqeval(tags: list[str]) -> None:
    text = " ".join(f"w{number}" for number in range(len(tags)))
    words = [(each.group(), each.start(), each.end()) for each in re.finditer(r"\w+", text)]
    logits = np.array([[10.0 if name == tag else 0.0 for name in NAMES] for tag in tags])
    logits = np.concatenate([np.zeros((1, 5)), np.repeat(logits, 2, 0)])  # a special piece, then two pieces a word
    places = [None, *(number for number in range(len(tags)) for _ in range(2))]
    found = predict._tags(logits, NAMES, text, words, places)["entities"]
    wanted = seqeval.metrics.sequence_labeling.get_entities(tags)
    assert [(each["entity"], each["text"]) for each in found] == [
        (kind, text[words[first][1] : words[last][2]]) for kind, first, last in wanted
    ]


def rows_file(folder: Path, count: int = 240) -> Path:
    """A semicolon table of a number, a category and a class; some values are missing."""
    rng, path = np.random.default_rng(1), folder / "wine.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, delimiter=";")
        out.writerow(["acid", "colour", "sweet", "grade"])
        for number in range(count):
            acid, colour = rng.normal(), ["red", "white", "rosé"][rng.integers(3)]
            grade = "good" if acid + (colour == "red") + 0.2 * rng.normal() > 0.4 else "bad"
            out.writerow([f"{acid:.4f}" if number % 11 else "NA", colour, rng.integers(9), grade])
    return path


STEPS = """
steps:
  - {use: train, name: student, inputs: {model: small}, budget: {epochs: 6}, batch_size: 32}
  - {use: export, name: student_onnx, inputs: {model: student}}
  - {use: benchmark, name: benchmark, inputs: {student: student_onnx}, repeats: 2}
"""


def run(folder: Path, text: str) -> Path:
    (folder / "recipe.yaml").write_text(f"version: 1\nseed: 0\n{text}{STEPS}", encoding="utf-8")
    dc.Recipe.load(folder / "recipe.yaml").run(folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    rows_file(folder)
    data = f"{{use: csv, path: {folder / 'wine.csv'}, target: grade, categorical: [colour], delimiter: ';'}}"
    return run(folder, f"task: {{use: tabular_classification}}\ndata: {data}\nmodels: {{small: {{use: mlp}}}}")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(60):
        name = ["dark", "light"][number % 2]
        (folder / "photos" / name).mkdir(parents=True, exist_ok=True)
        pixels = np.clip(RNG.normal(70 + 110 * (number % 2), 40, (20, 26, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.png")
    data = f"{{use: image_folder, path: {folder / 'photos'}, size: 16}}"
    return run(folder, f"task: {{use: image_classification}}\ndata: {data}\nmodels: {{small: {{use: mlp}}}}")


def test_rows_are_answered_as_they_were_scored(table: Path) -> None:
    """The file asked about its own test rows is as accurate as the benchmark found it, and torch answers the same."""
    model, recipe = dc.load(table), dc.Recipe.load(table / "recipe.yaml")
    rows = list(predict.rows_of(table.parent / "wine.csv"))
    said = model.predict(table.parent / "wine.csv")
    split = recipe.data.open().splits["test"]
    by_place = {
        tuple(np.nan_to_num(predict._row(each, model.manual["table"]), nan=-99).tolist()): i
        for i, each in enumerate(rows)
    }
    places = [
        by_place[tuple(np.nan_to_num(each.astype(np.float32), nan=-99).tolist())] for each in split.columns["features"]
    ]
    right = np.mean([said[place]["class"] == rows[place]["grade"] for place in places])
    [scored] = json.loads((table / "results.json").read_text())["models"]
    assert right == pytest.approx(scored["quality"]["accuracy"])
    through_torch = dc.load(table / "01-student")
    assert through_torch.module is not None
    through_torch.module.train()
    next(through_torch.module.children()).eval()  # as a frozen part has it
    modes = [module.training for module in through_torch.module.modules()]
    assert len(set(modes)) == 2
    through_torch.predict(rows[0])
    assert [module.training for module in through_torch.module.modules()] == modes
    for one, other in zip(said[:20], through_torch.predict(rows[:20])):
        assert one["class"] == other["class"]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)
    assert model.predict(rows[3]) == said[3]
    assert model.predict([0.5, "red", 3])["class"] in ("good", "bad")
    assert model.predict({"acid": 0.5, "colour": "green", "sweet": None})["class"] in ("good", "bad")


def test_photos_are_answered_as_they_were_scored(pictures: Path) -> None:
    model, folder = dc.load(pictures), pictures.parent / "photos"
    names = sorted(folder.rglob("*.png"))
    said = model.predict(names)
    right = [each["class"] == path.parent.name for each, path in zip(said, names)]
    assert np.mean(right) > 0.9
    pixels = np.asarray(Image.open(names[0]))
    for same in (str(names[0]), names[0].read_bytes(), Image.open(names[0]), pixels):
        assert model.predict(same) == said[0]
    assert model.predict(np.stack([pixels, pixels])) == [said[0], said[0]]
    assert model.predict(names[0], top=1)["probabilities"].keys() == {said[0]["class"]}


@pytest.mark.parametrize("kind", ["table", "pictures"])
def test_the_program_beside_a_file_answers_without_torch_and_decoct(request: Any, kind: str, tmp_path: Path) -> None:
    """In an interpreter that finds neither, from another folder; the command says the same without torch."""
    run_folder: Path = request.getfixturevalue(kind)
    asked = run_folder.parent / ("wine.csv" if kind == "table" else "photos")
    [program] = run_folder.glob("*-student_onnx/predict.py")
    code = (
        "import sys, runpy; sys.modules['torch'] = sys.modules['decoct'] = None; "
        f"sys.argv = ['predict', '--json', {str(asked)!r}]; runpy.run_path({str(program)!r}, run_name='__main__')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    alone = [json.loads(each) for each in done.stdout.splitlines()]
    code = (
        "import sys; from decoct.cli.app import call; "
        f"code = call(['--json', 'predict', {str(run_folder)!r}, {str(asked)!r}]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["answers"] == alone
    assert len(alone) > 50


def test_the_file_alone_knows_how_it_is_called(pictures: Path, tmp_path: Path) -> None:
    [source] = pictures.glob("*-student_onnx/model.onnx")
    (tmp_path / "moved.onnx").write_bytes(source.read_bytes())
    model = dc.load(tmp_path / "moved.onnx")
    photo = next((pictures.parent / "photos").rglob("*.png"))
    assert model.predict(photo) == dc.load(pictures).predict(photo)
    with pytest.raises(RecipeError, match="lone file"):
        _ = model.task
    with pytest.raises(RecipeError, match="no module"):
        _ = model.module


def test_what_cannot_be_answered_is_refused(table: Path, pictures: Path, tmp_path: Path) -> None:
    rows, photos = dc.load(table), dc.load(pictures)
    (tmp_path / "wrong.csv").write_text("acid;colour\n1;red;2\n")
    (tmp_path / "text.png").write_text("no picture")
    for model, asked, words in (
        (rows, {"acid": 1}, "no colour, sweet; the model takes acid, colour, sweet"),
        (rows, [1, 2], "has 2 values; the model takes 3"),
        (rows, {"acid": "much", "colour": "red", "sweet": 1}, "column acid: 'much' is no number"),
        (rows, tmp_path / "wrong.csv", "line 2: another number of cells"),
        (photos, tmp_path / "text.png", "no readable image"),
        (photos, 3, "a int is no photo"),
        (photos, np.zeros((4, 4)), "give uint8"),
    ):
        with pytest.raises(DataError, match=words):
            model.predict(asked)
    for manual in (
        None,
        [],
        {},
        {"format": 2},
        {"format": 1, "kind": "image"},
        {"format": 1, "kind": "x", "answers": {}},
    ):
        with pytest.raises(predict.Refused, match="manual"):
            predict.Asked(manual, lambda feed: feed)  # type: ignore[arg-type]
    for place, words in ((tmp_path, "no run and no artifact"), (tmp_path / "no", "is missing")):
        with pytest.raises(DataError, match=words):
            dc.load(place)


SENTENCES = ["a fine film", "no, it is not fine at all", "", "well acted, " * 20, "Ünïcode stays"]


@pytest.mark.parametrize("use", ["text_classification", "token_classification"])
def test_sentences_become_the_ids_that_the_task_reads(use: str) -> None:
    tokenizer = dc.WordPiece(size=120).resolve(SENTENCES)
    keys = np.arange(len(SENTENCES), dtype=np.uint64)
    if use == "text_classification":
        task: Any = dc.TextClassification(tokenizer=tokenizer, max_length=12, classes=("a", "b"))
        asked, split = SENTENCES, Split({"text": SENTENCES}, keys)
    else:
        task = dc.TokenClassification(tokenizer=tokenizer, max_length=12, classes=("O", "B-a"))
        words = [re.findall(r"\w+|[^\w\s]", each) for each in SENTENCES]
        asked, split = [" ".join(each) for each in words], Split({"words": words}, keys)
    reading = task.reading("student")
    wanted = reading.feed(task.collate(split, np.arange(len(asked))))
    feeds: list[dict[str, np.ndarray]] = []

    def run(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        feeds.append(feed)
        ids = feed["input_ids"]
        return {"logits": np.zeros((*ids.shape[: 2 if "token" in use else 1], 2), np.float32)}

    predict.Asked(reading.manual({}), run, reading.assets()["tokenizer.json"]).predict(asked)
    [found] = feeds
    assert found.keys() == wanted.keys()
    for name, each in wanted.items():
        np.testing.assert_array_equal(found[name], each)


def test_a_category_is_told_by_its_text_and_never_by_its_code() -> None:
    named, numbers = (
        {"name": "x", "categories": {"a": 0.0, "b": 1.0, "c": 2.0}},
        {"name": "x", "categories": {"1": 5.0}},
    )
    assert predict._cell("b", named, set()) == 1.0
    assert np.isnan(predict._cell("1", named, set()))
    assert np.isnan(predict._cell(1, named, set()))
    assert predict._cell(1.0, numbers, set()) == predict._cell("1", numbers, set()) == 5.0
    with pytest.raises(predict.Refused, match="no number"):
        predict._cell("inf", {"name": "x"}, set())


def test_ordinary_files_that_cannot_be_read_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("schön".encode("latin-1"))
    (tmp_path / "latin.csv").write_bytes("größe;b\n1;2\n".encode("latin-1"))
    (tmp_path / "wide.csv").write_text("a,b\n" + "x" * 200_000 + ",1\n")
    for name, kind in (("latin.txt", "text"), ("latin.csv", "tabular"), ("wide.csv", "tabular")):
        with pytest.raises(predict.Refused, match=name.replace(".", "\\.")):
            predict.asked_for([str(tmp_path / name)], kind)
    bomb = bytearray(encoded(Image.new("1", (8, 8)), "PNG"))
    bomb[16:24] = (20_000).to_bytes(4, "big") * 2
    with pytest.raises(predict.Refused, match="photo"):
        predict._opened(bytes(bomb))
    assert predict.line({"shares": 3.25}) == "shares 3.25"
    assert predict.printed("a\x1b[2J") == "a\\x1b[2J"


def test_a_table_without_a_header_is_asked_by_place(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("1.5,red\n2,blue\n")
    manual = {
        "format": 1,
        "kind": "tabular",
        "table": {
            "columns": [{"name": "0"}, {"name": "1", "categories": {"red": 0.0, "blue": 1.0}}],
            "missing": [],
            "header": False,
        },
        "answers": {"values": {"answer": "numbers"}},
    }
    asked = predict.Asked(manual, lambda feed: {"values": feed["features"].sum(1, keepdims=True)})
    assert asked.predict(tmp_path / "rows.csv") == [{"value": 1.5}, {"value": 3.0}]
    assert len(predict.asked_for([str(tmp_path / "rows.csv")], "tabular", asked.header)) == 2
