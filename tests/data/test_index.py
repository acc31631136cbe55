"""The index: the same data set as read from its files, nothing read again while they stay, and no lie believed."""

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from decoct.artifact import Artifact
from decoct.data import index
from decoct.data.base import Data, Dataset
from decoct.data.csv import CSV
from decoct.data.hashing import fingerprint
from decoct.data.image_folder import ImageFolder
from decoct.data.image_masks import ImageMasks
from decoct.data.index import changed, index_folder, opened
from decoct.data.text import Text
from decoct.data.tsv import TSV

RNG = np.random.default_rng(0)
ROWS = 22_000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DECOCT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "index"


def table(folder: Path) -> Data:
    numbers = RNG.integers(0, 10**9, (ROWS, 5))
    rows = "\n".join(f"{'abc'[row[0] % 3]},{','.join(map(str, row))},{'xy'[row[1] % 2]}" for row in numbers.tolist())
    (folder / "t.csv").write_text("name,a,b,c,d,e,target\n" + rows)
    return CSV(path=folder / "t.csv", target="target", categorical=("name",), labels=100)


def texts(folder: Path) -> Data:
    lines = (f"{number} " + "\u00e4\U0001f600 b" * (number % 9) for number in range(40_000))
    (folder / "t.txt").write_text("\n".join(lines), encoding="utf-8")
    return Text(path=folder / "t.txt", documents="line")


def labelled_texts(folder: Path) -> Data:
    lines = (f"{'a ' * (number % 50)}{number}\t{number % 3}" for number in range(25_000))
    (folder / "train.tsv").write_text("\n".join(lines))
    return TSV(path=folder, limit=20_000)


def pictures(folder: Path) -> Data:
    for number in range(40):
        path = folder / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (128, 128, 3), np.uint8)).save(path)
    (folder / "images" / "a" / "notes.txt").write_text("no picture")
    return ImageFolder(path=folder / "images")


def masks(folder: Path) -> Data:
    for number in range(30):
        for kind, shape in (("images", (32, 40, 3)), ("masks", (32, 40))):
            path = folder / kind / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(RNG.integers(0, 256 if kind == "images" else 3, shape).astype(np.uint8)).save(path)
    return ImageMasks(path=folder, size=(20, 24))


KINDS = [table, texts, labelled_texts, pictures, masks]


def same(one: Dataset, other: Dataset) -> None:
    assert (one.fingerprint, one.classes, one.features) == (other.fingerprint, other.classes, other.features)
    assert one.info == other.info
    assert list(one.splits) == list(other.splits)
    for name, split in one.splits.items():
        theirs = other.splits[name]
        assert (split.keys == theirs.keys).all()
        assert (split.labelled is None) == (theirs.labelled is None)
        for column, values in split.columns.items():
            assert np.array_equal(
                np.asarray(values), np.asarray(theirs.columns[column]), equal_nan=column == "features"
            )


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.filterwarnings("ignore:.*files in class folders are left out")
def test_what_is_remembered_is_what_the_files_hold(make: Any, tmp_path: Path) -> None:
    data = make(tmp_path)
    read = data.open(offline=True)
    first, quick, sure = opened(data), opened(data, sure=False), opened(data)
    assert [each.remembered for each in (first, quick, sure)] == [False, True, False]
    assert len(list(index_folder().rglob("manifest.json"))) == 1
    for each in (first, quick, sure):
        same(read, each)
        assert fingerprint(each.splits, each.classes, each.features) == read.fingerprint


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.filterwarnings("ignore:.*files in class folders are left out")
def test_files_are_read_once(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(tmp_path)
    opens = []
    before = type(data).open
    monkeypatch.setattr(type(data), "open", lambda self, **more: opens.append(self) or before(self, **more))
    for sure in (True, False, True):
        opened(data, sure=sure)
    assert len(opens) == 1
    opened(data.replace(validation=0.3))
    assert len(opens) == 2


def test_warnings_are_said_each_time(tmp_path: Path) -> None:
    data = pictures(tmp_path)
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"1 files in class folders are left out.*notes\.txt"):
            opened(data)


def test_a_small_data_set_is_not_kept(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "t.txt").write_text("a\nb\nc\nd\n" * 9)
    assert opened(Text(path=tmp_path / "t.txt", documents="line")).index is None
    assert not cache.exists()


def touch(file: Path) -> None:
    """Another content of the same size and time of change."""
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_changed_file_is_read_again_though_its_size_and_time_are_set_back(tmp_path: Path) -> None:
    data = texts(tmp_path)
    first = opened(data)
    touch(tmp_path / "t.txt")
    again = opened(data, sure=False)
    assert not again.remembered
    assert again.fingerprint != first.fingerprint
    assert len(list(index_folder().rglob("manifest.json"))) == 1


def lie(data: Data, file: Path) -> None:
    """An entry that says of a changed file that it is as before."""
    entry = opened(data).index
    assert entry is not None
    touch(file)
    now = index._entry(data)
    assert now is not None
    assert now.folder != entry
    shutil.move(entry, now.folder)


def test_an_entry_that_lies_is_found_where_it_is_looked_at_closely(tmp_path: Path) -> None:
    data = texts(tmp_path)
    lie(data, tmp_path / "t.txt")
    told = opened(data, sure=False)
    assert told.remembered
    assert changed(data) == [str(tmp_path / "t.txt")]
    now = opened(data)
    assert now.fingerprint == data.open(offline=True).fingerprint != told.fingerprint
    assert changed(data) == []


@pytest.mark.parametrize("broken", ["manifest", "cut", "gone", "bytes"])
def test_a_broken_entry_is_made_anew(broken: str, tmp_path: Path) -> None:
    data = table(tmp_path)
    entry = opened(data).index
    assert entry is not None
    column = entry / "train.columns.features.npy"
    if broken == "manifest":
        (entry / "manifest.json").write_text("{")
    elif broken == "cut":
        column.write_bytes(column.read_bytes()[:70])
    elif broken == "gone":
        column.unlink()
    else:
        content = bytearray(column.read_bytes())
        content[-9] ^= 255
        column.write_bytes(content)
    same(opened(data), data.open(offline=True))
    assert Artifact.load(entry).kind == "data"


def test_a_folder_that_takes_no_files_is_let_be(tmp_path: Path, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("no folder")
    data = texts(tmp_path)
    for _ in range(2):
        same(opened(data), data.open(offline=True))


def test_what_is_remembered_may_be_written_to_and_stays(tmp_path: Path) -> None:
    data = table(tmp_path)
    opened(data)
    first = opened(data)
    first.splits["train"].columns["features"][:] = 0
    same(opened(data), data.open(offline=True))


def test_processes_that_write_one_entry_at_once_leave_a_whole_one(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    data = texts(tmp_path)
    with warnings.catch_warnings(), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: opened(data).fingerprint, range(8)))
    assert set(found) == {data.open(offline=True).fingerprint}
    entries = list(index_folder().rglob("manifest.json"))
    assert len(entries) == 1
    Artifact.load(entries[0].parent)


@pytest.mark.skipif(os.name != "posix", reason="who may write is told by modes")
def test_an_index_that_others_may_write_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = table(tmp_path)
    opened(data)
    assert index_folder().stat().st_mode & 0o077 == 0
    assert opened(data, sure=False).remembered
    index_folder().chmod(0o777)
    assert not opened(data, sure=False).remembered


def test_nothing_is_said_of_files_that_are_gone(tmp_path: Path) -> None:
    assert changed(CSV(path=tmp_path / "gone.csv", target="y")) == []
