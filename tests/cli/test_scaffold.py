"""First recipes: for every task, and for the data in a folder."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from decoct.cli import scaffold
from decoct.errors import DataError
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
    for name, use in (("fashion-mnist", "fashion_mnist"), ("sst2", "tsv"), ("wine-quality", "csv")):
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
