"""A folder of images, one subfolder a class."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from decoct.data.base import Dataset, Split
from decoct.data.files import folder_of, is_junk, walked_names
from decoct.data.images import LARGEST_SIDE, SUFFIXES, Pictures, ValueRange
from decoct.data.labelled_pictures import whole
from decoct.data.pixels import PictureFiles, Read, examined
from decoct.data.splits import NAMES
from decoct.errors import DataError, RecipeError


class ImageFolder(PictureFiles):
    """Images in one folder for each class, with or without a folder for each split.

    `path/train/CLASS/*`, `path/validation/CLASS/*` and `path/test/CLASS/*` (in any case), or `path/CLASS/*`.
    `size`: the shorter side is scaled to it and the middle square kept, needed where the images differ in size;
    `channels` 1 (grey) or 3 (colour); `test` the fraction held out by key where there is no test folder. Images are
    decoded when a batch asks for them, to uint8: those of 16 bits scaled by 65535, or from `value_range` (black,
    white), which images of floats need. They are turned as their EXIF says; transparency is put on white. Folders that
    are hidden or hold no image are no classes; a warning names them.
    """

    use: ClassVar[str] = "image_folder"
    size: int | None = Field(default=None, ge=1, le=LARGEST_SIDE)
    channels: Literal[1, 3] = 3
    test: float = Field(default=0.2, gt=0, lt=1)
    value_range: ValueRange = None

    def files(self) -> list[str]:
        if self.path is None:
            return []
        found = [class_folders(folder) for folder in split_folders(folder_of(self.path)).values()]
        every = [
            [each.root, *each.others, *(path for files in each.files.values() for path in files)] for each in found
        ]
        return [str(path) for paths in every for path in paths]

    def decoder(self) -> tuple[Read, Pictures]:
        return self._decoded, Pictures(self.channels, self.value_range)

    def open(self, *, offline: bool = False) -> Dataset:
        if self.path is None:
            raise RecipeError("data.path: missing; give the folder of images")
        root = folder_of(self.path).absolute()
        found = {split: class_folders(folder) for split, folder in split_folders(root).items()}
        classes = tuple(sorted(found["train"].files))
        if len(classes) < 2:
            raise DataError(
                f"{found['train'].root}: {len(classes)} class folders with images ({', '.join(sorted(SUFFIXES))}); "
                "expected one folder for each of two or more"
            )
        _say_left_out(root, found)
        pictures = Pictures(self.channels, self.value_range)
        splits = {name: self._read(each, classes, pictures) for name, each in found.items()}
        return whole(self, splits, classes, pictures, root, self.test)

    def _read(self, found: ClassFolders, classes: tuple[str, ...], pictures: Pictures) -> Split:
        unknown = sorted(set(found.files) - set(classes))
        if unknown:
            raise DataError(f"{found.root / unknown[0]}: no class of the training folder ({', '.join(classes)})")
        if not found.files:
            raise DataError(f"{found.root}: no image files ({', '.join(sorted(SUFFIXES))}) in its class folders")
        files = [path for name in classes for path in found.files.get(name, ())]
        labels = [label for label, name in enumerate(classes) for _ in found.files.get(name, ())]
        pixels = examined(list(map(str, files)), self._decoded, pictures, "give data.size, to which all are brought")
        return Split({"image": pixels, "label": np.asarray(labels, np.int64)}, pixels.files.keys)

    def _decoded(self, path: str, pictures: Pictures) -> np.ndarray:
        return pictures.decoded(Path(path), path, self.size)


@dataclass(frozen=True)
class ClassFolders:
    """A folder with one folder a class: the `files` of each class that has some, sorted; the folders that are no
    classes, as they are hidden or hold no image; and the files of other kinds."""

    root: Path
    files: dict[str, list[str]]
    empty: list[Path]
    others: list[str]


def _by_parts(path: str) -> str:
    """What sorts paths as the tuples of their parts do, in half the time."""
    return path.replace(os.sep, "\0")


def _is_picture(path: str) -> bool:
    return path[path.rfind(".") :].lower() in SUFFIXES


def class_folders(root: Path) -> ClassFolders:
    """What a folder with one folder a class holds."""
    found = ClassFolders(root, {}, [], [])
    for folder in sorted(each for each in root.iterdir() if each.is_dir()):
        every = [] if is_junk(folder.name) else sorted(walked_names(folder, found.empty), key=_by_parts)
        files = [path for path in every if _is_picture(path)]
        if files:
            found.files[folder.name] = files
            if len(files) < len(every):
                found.others.extend(path for path in every if not _is_picture(path))
        else:
            found.empty.append(folder)
    return found


def _say_left_out(root: Path, found: dict[str, ClassFolders]) -> None:
    empty = [str(path.relative_to(root)) for each in found.values() for path in each.empty]
    if empty:
        warnings.warn(
            f"{root}: folders that are hidden or hold no images are left out and are no classes: "
            f"{', '.join(empty[:10])}{', ...' if len(empty) > 10 else ''}",
            stacklevel=3,
        )
    others = [path for each in found.values() for path in each.others]
    if others:
        warnings.warn(
            f"{root}: {len(others)} files in class folders are left out, as their endings are none of "
            f"{', '.join(sorted(SUFFIXES))} (such as {others[0]})",
            stacklevel=3,
        )


def split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split, by its name in any case; without one for training the folder is it."""
    there = {each.name.lower(): each for each in sorted(root.iterdir(), reverse=True) if each.is_dir()}
    found = {split: there[name] for split, names in NAMES.items() for name in reversed(names) if name in there}
    return found if "train" in found else {"train": root}
