"""Images listed in a table: they are those of the folder, and rows that cannot be read are named."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from decoct.data.image_folder import ImageFolder
from decoct.data.image_table import ImageTable
from decoct.errors import DataError, RecipeError


@pytest.fixture
def photos(tmp_path: Path) -> list[tuple[str, str]]:
    """24 pictures in class folders; their paths and classes."""
    rng, rows = np.random.default_rng(0), []
    for number in range(24):
        name = f"{'cat' if number % 3 else 'dog'}/{number:02}.png"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(tmp_path / name)
        rows.append((name, name.partition("/")[0]))
    return rows


def table(place: Path, rows: list[tuple[str, ...]], header: str = "image,label") -> Path:
    place.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    return place


def sorted_by_key(split):
    order = np.argsort(split.keys)
    return split.keys[order], split.columns["label"][order], split.columns["image"][order]


def test_a_table_of_a_folder_is_the_folder(photos, tmp_path: Path) -> None:
    listed = table(tmp_path / "photos.csv", photos[::-1])
    ours, theirs = ImageTable(path=listed).open(), ImageFolder(path=tmp_path).open()
    assert ours.classes == theirs.classes == ("cat", "dog")
    assert set(ours.splits) == set(theirs.splits)
    for name, split in ours.splits.items():
        for mine, other in zip(sorted_by_key(split), sorted_by_key(theirs.splits[name])):
            np.testing.assert_array_equal(mine, other)


def test_a_column_says_the_split_and_other_kinds_of_tables_are_read(photos, tmp_path: Path) -> None:
    said = ["train", "Training", "val", "test"]
    rows = [(path, label, said[i % 4]) for i, (path, label) in enumerate(photos)]
    listed = table(tmp_path / "p.tsv", rows, "file\tkind\tfold".replace("\t", ","))
    data = ImageTable(path=listed, image="file", target="kind", split="fold", delimiter=",").open()
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 12, "validation": 6, "test": 6}
    lines = [json.dumps(dict(zip(("file", "kind", "fold"), row))) for row in rows]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    same = ImageTable(path=tmp_path / "p.jsonl", image="file", target="kind", split="fold").open()
    assert same.fingerprint == data.fingerprint


def test_root_and_files_of_splits(photos, tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    table(lists / "train.csv", photos[:16])
    table(lists / "test.csv", photos[16:])
    with pytest.raises(DataError, match=r"(train|test)\.csv, row 1: .* is missing; paths count from data\.root"):
        ImageTable(path=lists).open()
    data = ImageTable(path=lists, root=tmp_path).open()
    assert len(data.splits["test"]) == 8
    spec = ImageTable(path=lists, root=tmp_path)
    assert len(spec.files()) == 2 + 24


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        ([("cat/01.png", "")], {}, "row 1: label is empty"),
        ([("", "cat")], {}, "row 1: image is empty"),
        ([("cat/01.png", "cat")], {}, "one class alone"),
        ([("cat/01.png", "cat", "later")], {"split": "fold"}, "fold is 'later'; say train"),
        ([("cat/01.png", "cat", "test")], {"split": "fold"}, "no row for training"),
    ],
)
def test_rows_that_cannot_be_read_are_named(photos, tmp_path: Path, rows, settings, words) -> None:
    header = "image,label,fold" if settings else "image,label"
    listed = table(tmp_path / "p.csv", rows, header)
    with pytest.raises(DataError, match=words):
        ImageTable(path=listed, **settings).open()


def test_a_column_that_is_not_there_is_a_wrong_setting(photos, tmp_path: Path) -> None:
    listed = table(tmp_path / "p.csv", photos)
    with pytest.raises(RecipeError, match=r"data\.image"):
        ImageTable(path=listed, image="picture").open()
