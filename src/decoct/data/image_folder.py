"""A folder of images, one subfolder a class."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from decoct.data.base import Data, Dataset, Split
from decoct.data.files import present
from decoct.data.hashing import image_keys
from decoct.data.images import decode, stack
from decoct.data.splits import assemble, hold_out
from decoct.errors import DataError, RecipeError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
NAMES = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}


class ImageFolder(Data):
    """Images in one folder for each class, with or without a folder for each split.

    `path/train/CLASS/*`, `path/validation/CLASS/*` and `path/test/CLASS/*`, or `path/CLASS/*`.
    `size`: the shorter side is scaled to it and the middle square kept, needed where the images differ in size;
    `channels` 1 (grey) or 3 (colour); `test` the fraction held out by key where there is no test folder. All images
    are kept in memory as uint8.
    """

    use: ClassVar[str] = "image_folder"
    size: int | None = Field(default=None, ge=1)
    channels: Literal[1, 3] = 3
    test: float = Field(default=0.2, gt=0, lt=1)

    def open(self, *, offline: bool = False) -> Dataset:
        if self.path is None:
            raise RecipeError("data.path: missing; give the folder of images")
        root = present(self.path)
        folders = _split_folders(root)
        classes = tuple(sorted(each.name for each in folders["train"].iterdir() if each.is_dir()))
        if len(classes) < 2:
            raise DataError(
                f"{folders['train']}: {len(classes)} class folders; expected one folder for each of two or more"
            )
        splits = {name: self._read(folder, classes) for name, folder in folders.items()}
        if "test" not in splits:
            splits["train"], splits["test"] = hold_out(splits["train"], self.test, "test")
        shapes = {name: split.columns["image"].shape[1:] for name, split in splits.items()}
        if len(set(shapes.values())) > 1:
            raise DataError(f"{root}: the splits differ in image size ({shapes}); give data.size")
        return assemble(self, splits, classes=classes)

    def _read(self, folder: Path, classes: tuple[str, ...]) -> Split:
        unknown = sorted(each.name for each in folder.iterdir() if each.is_dir() and each.name not in classes)
        if unknown:
            raise DataError(f"{folder / unknown[0]}: no class of the training folder ({', '.join(classes)})")
        files, labels = [], []
        for label, name in enumerate(classes):
            found = sorted(p for p in (folder / name).glob("**/*") if p.suffix.lower() in SUFFIXES)
            files += found
            labels += [label] * len(found)
        if not files:
            raise DataError(f"{folder}: no image files ({', '.join(sorted(SUFFIXES))}) in its class folders")
        images = [decode(path, str(path), self.channels, self.size) for path in files]
        stacked = stack(images, [str(path) for path in files], "give data.size, to which all are brought")
        return Split({"image": stacked, "label": np.asarray(labels, np.int64)}, image_keys(stacked))


def _split_folders(root: Path) -> dict[str, Path]:
    found = {split: root / name for split, names in NAMES.items() for name in reversed(names) if (root / name).is_dir()}
    return found if "train" in found else {"train": root}
