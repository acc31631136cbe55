"""Pixels that are decoded when asked for: the same bits, keys, orders and batches as all in memory, each file once."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from decoct.data.base import Split
from decoct.data.hashing import fingerprint, image_keys
from decoct.data.image_folder import ImageFolder
from decoct.data.images import Pictures
from decoct.data.index import opened
from decoct.data.lazy import LazyColumn
from decoct.data.pixels import KEPT_BYTES, Pixels, examined
from decoct.data.saving import load_data, save_data
from decoct.data.sources import Batches
from decoct.errors import DataError
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.inputs.images import channel_statistics

SIDE = 256
COUNT = KEPT_BYTES // (SIDE * SIDE * 3) + 10


def picture(path: Path, seed: int, side: int = 12) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(path)
    return str(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So many pictures that they are not kept once decoded at SIDE pixels."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        picture(folder / "ab"[number % 2] / f"{number:03}.png", number // 2 if number < 8 else number)
    return folder


@pytest.fixture
def no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that takes nothing, so that pictures are decoded each time."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DECOCT_CACHE", str(tmp_path / "file"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DECOCT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "index"


def eager(data: Any) -> dict[str, Split]:
    """All splits with their pixels in memory."""
    return {
        name: Split({**split.columns, "image": np.asarray(split.columns["image"])}, split.keys, split.labelled)
        for name, split in data.splits.items()
    }


def counting(decoded: list[str], lock: threading.Lock) -> Any:
    def read(path: str, pictures: Pictures) -> np.ndarray:
        with lock:
            decoded.append(path)
        return pictures.decoded(Path(path), path, SIDE)

    return read


def test_the_fingerprint_keys_and_statistics_are_those_of_pixels_in_memory(root: Path) -> None:
    data = ImageFolder(path=root, size=SIDE).open(offline=True)
    held = eager(data)
    assert fingerprint(held, data.classes, data.features) == data.fingerprint
    for name, split in data.splits.items():
        assert isinstance(split.columns["image"], LazyColumn)
        assert (image_keys(held[name].columns["image"]) == split.keys).all()
        assert channel_statistics(held[name].columns["image"]) == channel_statistics(split.columns["image"])


def test_pixels_are_those_that_the_files_hold_in_the_order_of_their_names(root: Path) -> None:
    split = ImageFolder(path=root, size=SIDE, validation=0, test=0.001).open(offline=True).splits["train"]
    files = sorted((root / "a").iterdir()) + sorted((root / "b").iterdir())
    by_key = {int(key): pixels for key, pixels in zip(split.keys, split.columns["image"])}
    for path in files[:9]:
        expected = Pictures().read(path, str(path), SIDE)
        key = int(image_keys(expected[None])[0])
        assert key not in by_key or (by_key[key] == expected).all()
    assert len(split) > COUNT - 5


@pytest.mark.parametrize("augment", [False, True])
def test_batches_are_bit_for_bit_those_of_pixels_in_memory(root: Path, augment: bool) -> None:
    data = ImageFolder(path=root, size=SIDE).open(offline=True)
    task = ImageClassification(augment={"flip": True, "crop": 3}).resolve(data)
    ways = [
        Batches(split, task.collate, batch_size=7, seed=3, augment=augment, prefetch=ahead)
        for split, ahead in ((data.splits["train"], 2), (eager(data)["train"], 0))
    ]
    ways[0].load_state_dict({"epoch": 1, "batch": 5})
    ways[1].load_state_dict({"epoch": 1, "batch": 5})
    for own, expected in zip(*ways, strict=True):
        assert (own.keys == expected.keys).all()
        assert (own.seen == expected.seen).all()
        assert own.inputs["student"].equal(expected.inputs["student"])
        assert own.target.equal(expected.target)


@pytest.mark.usefixtures("no_disk")
def test_a_batch_decodes_its_own_files_alone(root: Path) -> None:
    decoded: list[str] = []
    paths = [str(path) for path in sorted(root.rglob("*.png"))]
    column = examined(paths, counting(decoded, threading.Lock()), Pictures(), "give data.size")
    assert sorted(decoded) == paths
    decoded.clear()
    taken = column.take(np.arange(0, COUNT, 2)).take(np.array([3, 1, 3]))
    assert not decoded
    assert taken[np.array([0, 1])].shape == (2, SIDE, SIDE, 3)
    assert sorted(decoded) == sorted([paths[6], paths[2]])
    assert (taken[2] == taken[0:1][0]).all()


def test_few_pictures_are_decoded_once(root: Path) -> None:
    decoded: list[str] = []
    paths = [str(path) for path in sorted(root.rglob("*.png"))][: COUNT - 20]
    column = examined(paths, counting(decoded, threading.Lock()), Pictures(), "give data.size")
    assert sum(map(len, column.blocks())) == len(paths)
    assert column[5].shape == (SIDE, SIDE, 3)
    assert sorted(decoded) == paths


@pytest.mark.usefixtures("no_disk")
def test_a_file_that_is_changed_meanwhile_is_refused_by_name(root: Path, tmp_path: Path) -> None:
    paths = [str(path) for path in sorted(root.rglob("*.png"))]
    other = picture(tmp_path / "other.png", 99_999)
    paths.append(other)
    column = examined(paths, counting([], threading.Lock()), Pictures(), "give data.size")
    picture(Path(other), 100_000)
    assert column[: len(paths) - 1 : 40].shape[1:] == (SIDE, SIDE, 3)
    with pytest.raises(DataError, match=r"other\.png: it holds other pixels than when"):
        column[np.array([0, len(paths) - 1])]
    picture(Path(other), 99_999, side=6)
    with pytest.raises(DataError, match=r"other\.png: it holds other pixels than when"):
        column[len(paths) - 1]


def test_another_size_is_refused_by_name_wherever_it_stands(root: Path, tmp_path: Path) -> None:
    paths = [picture(tmp_path / f"{number}.png", number) for number in range(70)]
    paths.append(picture(tmp_path / "wide.png", 1, side=13))

    def read(path: str, pictures: Pictures) -> np.ndarray:
        return pictures.decoded(Path(path), path)

    with pytest.raises(DataError, match=r"wide\.png has 13x13 pixels, .*0\.png 12x12; give data\.size"):
        examined(paths, read, Pictures(), "give data.size")


def test_what_was_done_to_pictures_is_told_of_all_and_of_the_first(tmp_path: Path) -> None:
    for number in range(20):
        pixels = np.full((4, 4, 4), number, np.uint8)
        pixels[..., 3] = 255 if number % 3 else 9
        path = tmp_path / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    with pytest.warns(UserWarning, match=r"7 pictures with transparency are put on white \(such as .*00\.png\)"):
        ImageFolder(path=tmp_path).open(offline=True)


def test_lazy_pixels_are_saved_as_those_in_memory(root: Path, tmp_path: Path) -> None:
    from decoct.artifact import Artifact, writing

    split = ImageFolder(path=root, size=SIDE).open(offline=True).splits["test"]
    assert isinstance(split.columns["image"], Pixels)
    with writing(tmp_path / "data", kind="data", name="x") as draft:
        save_data(draft, split, classes=("a", "b"))
    found = load_data(Artifact.load(tmp_path / "data")).splits["train"]
    assert (found.columns["image"] == np.asarray(split.columns["image"])).all()


def test_many_pictures_are_decoded_once_while_the_disk_has_room(root: Path, cache: Path) -> None:
    decoded: list[str] = []
    paths = [str(path) for path in sorted(root.rglob("*.png"))]
    column = examined(paths, counting(decoded, threading.Lock()), Pictures(), "give data.size")
    held = np.asarray(column)
    assert (column.take(np.array([5, 1]))[np.array([1, 0])] == held[[1, 5]]).all()
    assert (image_keys(held) == column.files.keys).all()
    assert sorted(decoded) == paths
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("damage", ["none", "bit", "cut", "gone"])
def test_decoded_pixels_of_the_index_are_believed_where_their_key_fits(
    damage: str, tmp_path: Path, cache: Path
) -> None:
    for number in range(COUNT):
        picture(tmp_path / "data" / "ab"[number % 2] / f"{number:03}.png", number, side=64)
    data = ImageFolder(path=tmp_path / "data", size=SIDE, validation=0)
    expected = np.asarray(opened(data).splits["train"].columns["image"])
    (file,) = cache.rglob("*.pixels/train.image")
    assert (np.fromfile(file, np.uint8) == expected.reshape(-1)).all()
    if damage == "bit":
        content = bytearray(file.read_bytes())
        content[7] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "gone":
        file.unlink()
    found = opened(data).splits["train"].columns["image"]
    assert (np.asarray(found) == expected).all()
    assert (found[np.array([3, 0])] == expected[[3, 0]]).all()
