"""Files are asked what and how large they are before they are read."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoct.data import CATALOGUE
from decoct.data.files import is_junk, read_bytes, walked_names
from decoct.data.image_folder import class_folders
from decoct.data.parquet import read_columns
from decoct.errors import DataError, DecoctError, RecipeError, ResourceError

READERS = [use for use in CATALOGUE if CATALOGUE.resolve(use).reads_files and use not in ("several", "given")]


@pytest.mark.parametrize("use", READERS)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_no_reader_waits_for_a_pipe_or_reads_a_device(use: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "pipe" if kind == "pipe" else Path("/dev/zero")
    if kind == "pipe":
        os.mkfifo(path)
    fields: dict[str, Any] = {"target": "y"} if use in ("csv", "parquet") else {}
    with pytest.raises(DataError, match=str(path)):
        CATALOGUE.resolve(use)(path=path, **fields).open(offline=True)


@pytest.mark.parametrize("path", ["~nobody-at-all/x", "x" * 5000, "a\0b"])
def test_paths_that_cannot_be_are_refused(path: str) -> None:
    with pytest.raises(DataError, match=r"data\.path="):
        CATALOGUE.resolve("tsv")(path=path).open()


LIMITED = """
import resource, sys, psutil
from decoct.data.files import is_junk, read_bytes, walked_names
from decoct.data.image_folder import class_folders
from decoct.data.parquet import read_columns
from decoct.errors import ResourceError
from pathlib import Path
import pyarrow.parquet
used = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000,) * 2)
for read in (read_bytes, lambda path: read_columns([path], ["x"])):
    try:
        read(Path(sys.argv[1]))
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.csv.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        for _ in range(200):
            file.write(bytes(1 << 20))
    assert bomb.stat().st_size < 2_000_000
    done = subprocess.run([sys.executable, "-c", LIMITED, str(bomb)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"ResourceError {bomb}: it holds more than")
    assert "when decompressed; at most" in done.stdout


def test_a_parquet_file_of_endless_rows_is_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    file = tmp_path / "rows.parquet"
    column = pyarrow.array([7], pyarrow.int8()).take(pyarrow.array([0] * 10, pyarrow.int64()))
    many = pyarrow.chunked_array([pyarrow.concat_arrays([column] * 100_000)] * 10)
    pyarrow.parquet.write_table(pyarrow.table({"x": many}), file)
    assert file.stat().st_size < 100_000
    done = subprocess.run([sys.executable, "-c", LIMITED, str(file)], capture_output=True, text=True, check=True)
    assert f"ResourceError {file}: its 10,000,000 rows would take 0.64 GB" in done.stdout


def test_a_file_larger_than_memory_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "large.csv"
    with file.open("wb") as opened:
        opened.truncate(1 << 43)  # a hole: it takes no room on the disk
    with pytest.raises(ResourceError, match=r"large\.csv: it holds 8,796 GB; at most .* GB can be read"):
        read_bytes(file)


def test_whole_and_compressed_files_are_read_as_ever(tmp_path: Path) -> None:
    content = bytes(range(256)) * 50_000
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "b.gz").write_bytes(gzip.compress(content[:9_000_000]) + gzip.compress(content[9_000_000:]))
    (tmp_path / "c").write_bytes(b"")
    assert read_bytes(tmp_path / "a") == read_bytes(tmp_path / "b.gz") == content
    assert read_bytes(tmp_path / "c") == b""
    (tmp_path / "b.gz").write_bytes(gzip.compress(content)[:-20])
    with pytest.raises(DataError, match=r"b\.gz: damaged gzip"):
        read_bytes(tmp_path / "b.gz")


@pytest.mark.parametrize(
    ("use", "fields", "message"),
    [
        ("digits", {"path": "x"}, r"path is 'x', and digits has no files that it could name; leave it out"),
        ("given", {"name": "n", "type": "t", "path": "x"}, "path is 'x', and given has no files"),
        ("given", {"name": "n", "type": "t", "limit": 5}, "limit is 5, and loaders say themselves"),
        ("several", {"sets": {"a": {"use": "digits"}}, "path": "x"}, r"path is said of each of the sets: sets\.a"),
    ],
)
def test_what_would_be_ignored_is_refused(use: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        CATALOGUE.resolve(use)(**fields)


def test_a_wide_table_is_read_in_time(tmp_path: Path) -> None:
    names = [f"c{at}" for at in range(20_000)]
    (tmp_path / "a.csv").write_text(
        "\n".join([",".join(names), *(",".join([str(row)] * len(names)) for row in range(6))])
    )
    found = CATALOGUE.resolve("csv")(path=tmp_path / "a.csv", target="c19999", kind="regression", validation=0).open()
    assert len(found.features) == 19_999
    (tmp_path / "a.csv").write_text(",".join([*names, "c7"]) + "\n")
    with pytest.raises(DataError, match="two columns are called 'c7'"):
        CATALOGUE.resolve("csv")(path=tmp_path / "a.csv", target="c1").open()


def test_parquet_must_be_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.parquet")
    with pytest.raises(DecoctError, match="a pipe and no regular file"):
        read_columns([tmp_path / "train.parquet"], ["x"])


def test_the_walk_finds_what_os_walk_finds(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for name in ("a/1.jpg", "a/deep/er/2.jpg", "a/.hidden/3.jpg", "__MACOSX/4.jpg", ".5.jpg", "b.c/6", "7.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    outside.mkdir()
    (outside / "8.jpg").touch()
    (root / "linked").symlink_to(outside)
    (root / "9.jpg").symlink_to(outside / "8.jpg")
    (root / "gone.jpg").symlink_to(outside / "none")
    (root / "loop.jpg").symlink_to("loop.jpg")
    wanted, left = [], []
    for place, folders, names in os.walk(root):
        left += [Path(place, each) for each in folders if is_junk(each)]
        folders[:] = [each for each in folders if not is_junk(each)]
        wanted += [os.path.join(place, each) for each in names if not is_junk(each)]
    junk: list[Path] = []
    assert sorted(walked_names(root, junk)) == sorted(wanted)
    assert sorted(junk) == sorted(left)
    assert {Path(each).name for each in wanted} == {"1.jpg", "2.jpg", "6", "7.jpg", "9.jpg", "gone.jpg", "loop.jpg"}
    with pytest.raises(DataError, match="none: cannot be read"):
        list(walked_names(root / "none"))


@given(st.sets(st.lists(st.text("a.-\u00e4\U0001f600", min_size=1, max_size=3), min_size=1, max_size=3).map(tuple)))
def test_pictures_are_ordered_by_the_parts_of_their_paths(names: set[tuple[str, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for parts in names:
            path = Path(folder, "class", *(f"d{each}" for each in parts[:-1]), f"f{parts[-1]}.JPG")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        found = class_folders(Path(folder)).files.get("class", [])
        assert len(found) == len(names)
        assert [Path(each).parts for each in found] == sorted(Path(each).parts for each in found)
