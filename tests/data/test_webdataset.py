"""Tar shards hold the samples of the folder of the same pictures, and what is wrong with them is said by name."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from decoct.data.image_folder import ImageFolder
from decoct.data.index import opened
from decoct.data.shards import Places
from decoct.data.sources import Batches
from decoct.data.webdataset import WebDataset
from decoct.errors import DataError
from decoct.outputs import Batch

RNG = np.random.default_rng(0)
CLASSES = ("cat", "dog")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECOCT_CACHE", str(tmp_path / "cache"))


def shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def picture(side: int = 24) -> bytes:
    made = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (side, side, 3), np.uint8)).save(made, "png")
    return made.getvalue()


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The same pictures as shards and as folders of classes."""
    number = 0
    for split, shards in (("train", 2), ("val", 1), ("test", 1)):
        for at in range(shards):
            members = []
            for _ in range(12):
                content, label = picture(), CLASSES[number % 2]
                members += [(f"a/{number:04}.png", content), (f"a/{number:04}.txt", f"{label}\n".encode())]
                members += [(f"a/{number:04}.cls", str(number % 2).encode())]
                members += [(f"a/{number:04}.json", json.dumps({"label": number % 2, "name": label}).encode())]
                file = tmp_path / "images" / split / label / f"{number:04}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
                number += 1
            shard(tmp_path / "shards" / f"pets-{split}-{at:03}.tar", [*members, ("a/README", b"no sample")])
    return tmp_path / "shards", tmp_path / "images"


def drawn(data: Any, start: int = 0) -> list[tuple[Any, Any]]:
    def collate(split: Any, indices: np.ndarray, **_: Any) -> Any:
        return Batch(split.columns["image"][indices], split.columns["label"][indices])

    source = Batches(data.splits["train"], collate, batch_size=5, seed=3)
    source.load_state_dict({"epoch": 1, "batch": start})
    return [(batch.inputs, batch.target) for batch in source]


def test_shards_are_the_folder_of_their_pictures(folders: tuple[Path, Path]) -> None:
    """Samples, keys, the order of an epoch, and what a resumed run draws."""
    shards, images = folders
    data, whole = opened(WebDataset(path=shards, target="txt", size=16)), ImageFolder(path=images, size=16).open()
    assert data.classes == whole.classes == CLASSES
    for name, split in whole.splits.items():
        assert sorted(data.splits[name].keys.tolist()) == sorted(split.keys.tolist())
    again = opened(WebDataset(path=shards, target="txt", size=16), sure=False)
    assert again.remembered
    assert isinstance(again.splits["train"].columns["image"].files.paths, Places)
    assert again.fingerprint == data.fingerprint
    for one in (data, again):
        for (inputs, target), (theirs, expected) in zip(drawn(one), drawn(whole), strict=True):
            assert (inputs == theirs).all()
            assert (target == expected).all()
        assert all((a[0] == b[0]).all() for a, b in zip(drawn(one, 2), drawn(whole)[2:], strict=True))


def test_labels_are_texts_numbers_or_fields(folders: tuple[Path, Path]) -> None:
    shards, _ = folders
    text = WebDataset(path=shards, target="txt").open()
    for settings in ({"classes": CLASSES}, {"target": "json", "classes": CLASSES}, {"target": "json", "field": "name"}):
        assert WebDataset(path=shards, **settings).open().fingerprint == text.fingerprint
    assert WebDataset(path=shards).open().classes == ("0", "1")


def test_patterns_stand_for_shards(folders: tuple[Path, Path]) -> None:
    shards, _ = folders
    for name, expected in (
        ("pets-{train,test}-{000..000}.tar", {"train": 12, "test": 12}),
        ("pets-{val,t*}-*.tar", {"train": 24, "validation": 12, "test": 12}),
    ):
        data = WebDataset(path=shards / name, target="txt", validation=0).open()
        assert {split: len(each) for split, each in data.splits.items()} == expected
    held = WebDataset(path=shards / "pets-train-{000..001}.tar", target="txt", validation=0).open().splits
    assert (set(held), len(held["train"]) + len(held["test"])) == ({"train", "test"}, 24)
    with pytest.raises(DataError, match=r"pets-train-002\.tar: nothing is there"):
        WebDataset(path=shards / "pets-train-{000..002}.tar").open()
    with pytest.raises(DataError, match="more than 100,000 files"):
        WebDataset(path=shards / "{0..999999999}.tar").open()


def link(name: str) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return made


def test_links_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(link("0.png"))
    with pytest.raises(DataError, match=r"a\.tar: '0\.png' is no plain file but a link or a device"):
        WebDataset(path=tmp_path / "a.tar").open()


@pytest.mark.parametrize("damage", ["cut", "cut at a member", "header", "zipped"])
def test_damaged_shards_are_refused_by_name(damage: str, tmp_path: Path) -> None:
    members = [
        (f"{at}.{ending}", content) for at in range(6) for ending, content in (("png", picture()), ("cls", b"1"))
    ]
    content = bytearray(shard(tmp_path / "a.tar", members).read_bytes())
    with tarfile.open(tmp_path / "a.tar") as archive:
        places = [each.offset for each in archive]
    if damage == "header":
        content[places[5] + 20] ^= 255
    written = {"cut": content[: places[4] + 600], "cut at a member": content[: places[4]], "header": content}
    (tmp_path / "a.tar").write_bytes(written.get(damage) or b"\x1f\x8b" + bytes(2000))
    with pytest.raises(DataError, match=r"a\.tar: a (damaged|compressed) shard"):
        WebDataset(path=tmp_path / "a.tar").open()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("0.png", picture())], r"a\.tar: 0: 1 pictures .* and 0 labels \(cls\)"),
        ([("0.png", picture()), ("0.jpg", picture()), ("0.cls", b"1")], "2 pictures"),
        ([("0.png", picture()), ("0.cls", b"\xff")], r"0\.cls: no label can be read"),
        (
            [("0.png", b"no picture"), ("0.cls", b"1"), ("1.png", picture()), ("1.cls", b"0")],
            r"a\.tar: 0\.png: no read",
        ),
        ([("0.txt", b"x")], "no sample of a picture"),
    ],
)
def test_what_is_no_sample_is_refused(members: list[tuple[str, bytes]], message: str, tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=message):
        WebDataset(path=tmp_path / "a.tar").open()


def test_a_shard_that_changes_is_noticed(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    shards, _ = folders
    monkeypatch.setattr("decoct.data.pixels.KEPT_BYTES", 0)
    monkeypatch.setattr("decoct.data.decoded.MOST_BYTES", 0)
    column = WebDataset(path=shards, target="txt").open().splits["train"].columns["image"]
    whole = np.asarray(column)
    (shards / "pets-train-000.tar").write_bytes((shards / "pets-train-001.tar").read_bytes())
    with pytest.raises(DataError, match=r"pets-train-000\.tar.*(other pixels|no readable image|ends there)"):
        np.asarray(column)
    assert len(whole) == 24
