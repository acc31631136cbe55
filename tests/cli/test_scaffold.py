"""First recipes: for every task, and for the data in a folder."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from decoct.cli import scaffold
from decoct.errors import DataError, RecipeError
from decoct.recipe.file import read
from decoct.recipe.recipe import Recipe
from decoct.tasks import CATALOGUE


def load(text: str) -> Recipe:
    assert sum(line.lstrip().startswith("#") for line in text.splitlines()) >= 8, "commented"
    return Recipe.from_marked(read(text))


@pytest.mark.parametrize("task", CATALOGUE)
def test_every_task_has_a_first_recipe(task: str) -> None:
    recipe = load(scaffold.write(task))
    assert recipe.task.use == task
    names = [step.name for step in recipe.steps]
    assert names[:3] == ["teacher", "student_alone", "student"]
    assert recipe.step("student").budget == recipe.step("student_alone").budget


def images(folder: Path) -> None:
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for index in range(8):
            pixels = np.full((20, 24, 3), index, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{index}.png")


def texts(folder: Path) -> None:
    folder.mkdir()
    (folder / "train.tsv").write_text("".join(f"a film of sort {i}\t{i % 2}\n" for i in range(20)))
    (folder / "test.tsv").write_text("good\t1\nbad\t0\n")


def words(folder: Path) -> None:
    folder.mkdir()
    for name in ("train", "test"):
        (folder / f"{name}.conll").write_text("".join(f"Ulm{i}\tB-place\nis\tO\n\n" for i in range(20)))


def classes(folder: Path) -> None:
    folder.mkdir()
    rows = "".join(f"{i},{'red' if i % 3 else 'blue'},{'yes' if i % 2 else 'no'}\n" for i in range(40))
    (folder / "table.csv").write_text("age,colour,answer\n" + rows)


def numbers(folder: Path) -> None:
    folder.mkdir()
    with gzip.open(folder / "table.csv.gz", "wt") as file:
        file.write("".join(f"{i};{i * i};{i / 7}\n" for i in range(60)))


@pytest.mark.parametrize(
    ("make", "task"),
    [
        (images, "image_classification"),
        (texts, "text_classification"),
        (words, "token_classification"),
        (classes, "tabular_classification"),
        (numbers, "regression"),
    ],
    ids=lambda each: getattr(each, "__name__", each),
)
def test_a_folder_is_understood_and_its_data_are_read(make, task: str, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    make(folder)
    recipe = load(scaffold.write(None, folder))
    assert recipe.task.use == task
    data = recipe.data.open(offline=True)
    assert recipe.task.resolve(data).use == task
    assert len(data.splits["train"]) > 0


def test_a_named_task_decides_what_a_table_is(tmp_path: Path) -> None:
    numbers(tmp_path / "mine")
    assert load(scaffold.write("tabular_classification", tmp_path / "mine")).data.kind == "classification"


def test_real_data_are_understood(data_root: Path) -> None:
    for name, use in (
        ("fashion-mnist", "fashion_mnist"),
        ("sst2", "tsv"),
        ("adult", "csv"),
        ("banking77", "text_files"),
    ):
        _, data = scaffold.look_at(data_root / name)
        assert data["use"] == use


@pytest.mark.parametrize("content", [None, "notes.txt"])
def test_what_is_not_understood_is_said(content: str | None, tmp_path: Path) -> None:
    if content:
        (tmp_path / content).write_text("x")
    with pytest.raises(DataError, match="one folder a class"):
        scaffold.write(None, tmp_path)


def test_a_shipped_recipe_is_found_by_name_and_a_file_by_path(tmp_path: Path) -> None:
    assert scaffold.find("digits").name == "digits.yaml"
    mine = tmp_path / "digits.yaml"
    mine.write_text("seed: 1")
    assert scaffold.find(str(mine)) == mine


def tables(folder: Path) -> Path:
    """Adult's habits: a test file beside the training file, whose classes end with a full stop; a column of ids."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, count, stop in (("people-test.csv", 60, "."), ("people-train.csv", 200, "")):
        rows = ["id,age,work,income"]
        for number in range(count):
            age, work = int(rng.integers(18, 80)), ["state", "own"][int(rng.integers(2))]
            rows.append(f"p{number}{count},{age},{work},{'high' if age > 50 else 'low'}{stop}")
        (folder / name).write_text("\n".join(rows) + "\n")
    return folder


def sentences(folder: Path, form: str) -> Path:
    """Quoted texts with commas and a class each, in a training and a test file."""
    folder.mkdir()
    for name, count in (("train", 90), ("test", 30)):
        rows = [
            {"text": f'it is "{word}", number {i} of all', "category": word}
            for i in range(count // 3)
            for word in "abc"
        ]
        file = folder / f"{name}.{form}"
        if form == "jsonl":
            file.write_text("".join(json.dumps(each) + "\n" for each in rows))
        elif form == "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        else:
            with file.open("w", newline="") as out:
                writer = csv.DictWriter(out, ["text", "category"], delimiter="\t" if form == "tsv" else ",")
                writer.writeheader()
                writer.writerows(rows)
    return folder


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_texts_with_a_label_are_told_from_categories(form: str, tmp_path: Path) -> None:
    data = load(scaffold.write(None, sentences(tmp_path / "mine", form))).data.open()
    assert data.classes == ("a", "b", "c")
    assert len(data.splits["test"]) == 30
    texts = {each for split in data.splits.values() for each in split.columns["text"]}
    assert 'it is "b", number 4 of all' in texts


def test_a_test_file_is_never_trained_on_and_ids_are_left_out(tmp_path: Path) -> None:
    recipe = load(scaffold.write(None, tables(tmp_path / "mine")))
    with pytest.warns(UserWarning, match="full stop"):
        data = recipe.data.open()
    assert data.features == ("age", "work")
    assert len(data.splits["test"]) == 60
    assert data.classes == ("high", "low")


def test_files_that_nobody_can_tell_apart_are_listed(tmp_path: Path) -> None:
    for name in ("red", "white"):
        numbers(tmp_path / name)
        next((tmp_path / name).iterdir()).rename(tmp_path / f"{name}.csv")
    with pytest.raises(DataError, match=r"red\.csv, white\.csv; give one of them"):
        scaffold.write(None, tmp_path)


def test_presets_lengthen_training_and_few_samples_are_seen_more_often(tmp_path: Path) -> None:
    folder = sentences(tmp_path / "mine", "csv")
    epochs = {}
    for preset in scaffold.PRESETS:
        recipe = load(scaffold.write(None, folder, scaffold.Wishes(preset)))
        student = next(each for each in recipe.steps if each.name == "student")
        epochs[preset] = student.budget.epochs
        assert student.batch_size == scaffold.BATCH
        assert ("student_int8" in {each.name for each in recipe.steps}) == (preset != "fast")
    assert epochs["fast"] < epochs["balanced"] < epochs["best"]
    assert epochs["balanced"] * 90 / scaffold.BATCH >= scaffold.STEPS - 40
    with pytest.raises(RecipeError, match="did you mean fast"):
        scaffold.write(None, folder, scaffold.Wishes("fasst"))
    named = load(scaffold.write(None, folder, scaffold.Wishes("fast", "small_gpt", "bilstm")))
    assert named.models["large"].use == "small_gpt"


TITANIC = "PassengerId,Survived,Pclass,Name,Age\n" + "".join(
    f'{i},{i % 2},{i % 3 + 1},"Person {i}, Mr. Some One",{20 + i}\n' for i in range(60)
)


@pytest.mark.parametrize(
    ("text", "target", "wanted"),
    [
        (TITANIC, "Survived", {"use": "csv", "target": "Survived", "drop": ["Name"]}),
        ("country,2019,2020,label\n" + "a,1,2,x\nb,2,3,y\n" * 9, None, {"use": "csv", "target": "label"}),
        ("5.1,3.5,setosa\n4.9,3.0,setosa\n6.1,2.8,virginica\n" * 9, None, {"use": "csv", "header": False}),
        ("id,text,label\n" + "".join(f"{i},so it is said,{i % 2}\n" for i in range(30)), None, {"use": "text_files"}),
    ],
    ids=["titanic", "years", "iris", "ids"],
)
def test_tables_of_ordinary_people_are_what_they_are(
    text: str, target: str | None, wanted: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "mine.csv").write_text(text)
    _, data = scaffold.look_at(tmp_path / "mine.csv", None, target)
    assert wanted.items() <= data.items()
    assert ("header" in data) == ("header" in wanted)


def test_folders_of_parts_are_no_classes(tmp_path: Path) -> None:
    for part in ("Train", "Test"):
        images(tmp_path / "kaggle" / part)
    data = load(scaffold.write(None, tmp_path / "kaggle")).data.open()
    assert data.classes == ("cat", "dog")
    assert len(data.splits["test"]) == 16
    for part in ("images", "masks"):
        (tmp_path / "maps" / part).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "maps" / part / "a.png")
    with pytest.raises(DataError, match="no classes; say which task"):
        scaffold.write(None, tmp_path / "maps")
    (tmp_path / "lone").mkdir()
    (tmp_path / "lone" / "test.csv").write_text(TITANIC)
    with pytest.raises(DataError, match="no file is called train"):
        scaffold.write(None, tmp_path / "lone")
