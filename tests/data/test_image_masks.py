"""Folders of images and masks: pairs, ids and colours, sizes, splits, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from decoct.data.base import Dataset
from decoct.data.image_masks import ImageMasks
from decoct.errors import DataError, RecipeError

CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")


def pixels(seed: int, height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ids(seed: int, height: int = 6, width: int = 8) -> np.ndarray:
    found = np.random.default_rng(seed).integers(0, 3, (height, width), dtype=np.uint8)
    found[0, 0] = 9
    return found


def save(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def folder(root: Path, count: int = 10) -> Path:
    for i in range(count):
        save(pixels(i), root / "images" / f"{i}.png")
        save(ids(i), root / "masks" / f"{i}.png")
    return root


def opened(root: Path, **settings: Any) -> Dataset:
    return ImageMasks(path=root, **settings).open(offline=True)


def test_masks_stay_with_their_images(tmp_path: Path) -> None:
    data = opened(folder(tmp_path), ignored=9)
    assert data.classes == ("0", "1", "2")
    seen = 0
    for split in data.splits.values():
        for image, mask in zip(split.columns["image"], split.columns["mask"], strict=True):
            number = next(i for i in range(10) if np.array_equal(image, pixels(i)))
            np.testing.assert_array_equal(mask, np.where(ids(number) == 9, 255, ids(number)))
            seen += 1
    assert seen == 10
    assert set(data.splits) == {"train", "validation", "test"}


def test_a_palette_and_16_bits_are_read_as_ids(tmp_path: Path) -> None:
    folder(tmp_path)
    palette = Image.fromarray(ids(0), "P")
    palette.putpalette([7, 7, 7] * 256)
    palette.save(tmp_path / "masks" / "0.png")
    save(ids(1).astype(np.uint16), tmp_path / "masks" / "1.png")
    split = opened(tmp_path, ignored=9, validation=0.0, test=0.01).splits["train"]
    found = {image.tobytes(): mask for image, mask in zip(split.columns["image"], split.columns["mask"])}
    known = [i for i in (0, 1) if pixels(i).tobytes() in found]
    assert known
    for i in known:
        np.testing.assert_array_equal(found[pixels(i).tobytes()], np.where(ids(i) == 9, 255, ids(i)))


def test_colours_become_ids(tmp_path: Path) -> None:
    colours = ((0, 0, 0), (10, 20, 30), (10, 20, 31))
    for i in range(10):
        save(pixels(i), tmp_path / "images" / f"{i}.jpg")
        save(np.array([*colours, (1, 1, 1)], np.uint8)[np.minimum(ids(i), 3)], tmp_path / "masks" / f"{i}.png")
    split = opened(tmp_path, colours=colours, classes=("a", "b", "c")).splits["test"]
    assert sorted(np.unique(split.columns["mask"])) == [0, 1, 2, 255]
    wanted = {np.where(ids(i) == 9, 255, ids(i)).astype(np.uint8).tobytes() for i in range(10)}
    assert {mask.tobytes() for mask in split.columns["mask"]} <= wanted


def test_size_averages_images_and_picks_of_masks(tmp_path: Path) -> None:
    for i in range(4):
        height = 8 + 4 * i
        image, mask = np.zeros((height, 12, 3), np.uint8), np.zeros((height, 12), np.uint8)
        image[:, 6:], mask[:, 6:] = 200, 1
        image[:, :6] = 10 * i
        save(image, tmp_path / "images" / f"{i}.png")
        save(mask, tmp_path / "masks" / f"{i}.png")
    with pytest.raises(DataError, match=r"give data\.size"):
        opened(tmp_path)
    data = opened(tmp_path, size=(4, 6))
    for split in data.splits.values():
        assert split.columns["image"].shape[1:] == (4, 6, 3)
        assert (split.columns["image"][:, :, -1] == 200).all()
        assert set(split.columns["image"][:, :, 0].ravel()) <= {0, 10, 20, 30}
        assert split.columns["mask"].tolist() == [[[0, 0, 0, 1, 1, 1]] * 4] * len(split)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"0\.png: the mask holds 9; allowed: 0 to 1, and 255.*data\.ignored"),
        ({"ignored": 8}, "the mask holds 9"),
        ({"masks": "nowhere"}, "nowhere: nothing is there"),
        ({"images": "{split}", "masks": "{split}annot"}, "train: nothing is there; see data.images"),
    ],
)
def test_what_is_no_class_and_what_is_not_there_is_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        opened(folder(tmp_path), classes=("a", "b"), **settings)


def test_pairs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, 4)
    save(pixels(5), tmp_path / "images" / "5.png")
    with pytest.raises(DataError, match=r"5\.png has no partner in .*masks"):
        opened(tmp_path)
    save(ids(5, 6, 7), tmp_path / "masks" / "5.png")
    with pytest.raises(DataError, match=r"5\.png: 7x6 pixels, its image has 8x6"):
        opened(tmp_path, ignored=9)
    save(pixels(5), tmp_path / "masks" / "5.png")
    with pytest.raises(DataError, match=r"5\.png: the mask holds colours"):
        opened(tmp_path, ignored=9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": "{split}"}, "write {split} in both"),
        ({"classes": ("a",), "colours": ((0, 0, 0), (1, 1, 1))}, "2 colours for 1 classes"),
        ({"colours": ((0, 0, 0), (0, 0, 0))}, "two classes have one colour"),
        ({"size": (0, 4)}, "each at least 1"),
    ],
)
def test_settings_that_disagree_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ImageMasks.parse(settings)


def test_without_a_path_it_says_what_to_give() -> None:
    with pytest.raises(RecipeError, match=r"data\.path: missing"):
        ImageMasks().open()


def test_camvid(data_root: Path) -> None:
    settings = {"images": "{split}", "masks": "{split}annot", "classes": CAMVID, "ignored": 11}
    data = opened(data_root / "camvid", **settings)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 41, "validation": 6, "test": 18}
    train = data.splits["train"].columns["mask"]
    assert train.shape == (41, 360, 480)
    counts = np.bincount(train.ravel(), minlength=256)
    assert counts[:4].tolist() == [1203439, 1698427, 70518, 2188281]
    assert (counts[10], counts[11], counts[255]) == (20348, 0, 254291)
