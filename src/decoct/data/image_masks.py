"""A folder of images and a folder of masks, which say of every pixel what it shows."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from decoct.data.base import Dataset, Split
from decoct.data.files import folder_of
from decoct.data.images import LARGEST_SIDE, SUFFIXES, Pictures, ValueRange, pictures_in, resized
from decoct.data.pixels import PictureFiles, Read, examined
from decoct.data.splits import NAMES, assemble, hold_out
from decoct.errors import DataError, RecipeError

NO_CLASS = 255
"""The id of pixels that belong to no class."""
SPLIT = "{split}"
Colour = tuple[int, int, int]


class ImageMasks(PictureFiles):
    """Images with a mask each, of one name, in two folders; pixels of a mask hold class ids or colours.

    `images` and `masks`: folders below `path`; with `{split}` in both they are looked for as train, validation (or val,
    valid) and test, else one folder holds all and `test` is the fraction held out by key. `classes`: names by id, as
    many as there are ids where left out. `colours`: the colour (red, green, blue) of each class, for masks of colours;
    another colour is no class. `ignored`: the id of pixels that belong to no class, besides 255. `size` (height,
    width): images are resized to it by averaging, masks by the nearest pixel; needed where they differ in size.
    `channels` 1 (grey) or 3 (colour). Masks are kept in memory, images decoded when a batch asks for them, to uint8:
    those of 16 bits scaled by 65535, or from `value_range` (black, white), which images of floats need. Images and
    masks are turned as their EXIF says; transparency is put on white.
    """

    use: ClassVar[str] = "image_masks"
    images: str = "images"
    masks: str = "masks"
    classes: tuple[str, ...] = Field(default=(), max_length=NO_CLASS)
    colours: tuple[Colour, ...] = ()
    ignored: int | None = Field(default=None, ge=0, le=NO_CLASS)
    size: tuple[int, int] | None = None
    channels: Literal[1, 3] = 3
    test: float = Field(default=0.2, gt=0, lt=1)
    value_range: ValueRange = None

    @model_validator(mode="after")
    def _agree(self) -> ImageMasks:
        if (SPLIT in self.images) != (SPLIT in self.masks):
            raise ValueError(f"images is {self.images!r} and masks {self.masks!r}; write {SPLIT} in both or in none")
        if self.colours and self.classes and len(self.colours) != len(self.classes):
            raise ValueError(f"{len(self.colours)} colours for {len(self.classes)} classes; give one for each")
        if len(set(self.colours)) < len(self.colours):
            raise ValueError("two classes have one colour; give each its own")
        if self.size is not None and not (min(self.size) >= 1 and max(self.size) <= LARGEST_SIDE):
            raise ValueError(f"size is {self.size}; give (height, width), each at least 1 and at most {LARGEST_SIDE}")
        return self

    def files(self) -> list[str]:
        if self.path is None:
            return []
        found = []
        for folders in self._folders(folder_of(self.path).absolute()).values():
            found += [*folders, *(path for pair in self._partners(*folders) for path in pair)]
        return list(map(str, found))

    def decoder(self) -> tuple[Read, Pictures]:
        return self._image, Pictures(self.channels, self.value_range)

    def open(self, *, offline: bool = False) -> Dataset:
        if self.path is None:
            raise RecipeError("data.path: missing; give the folder that holds the images and the masks")
        root = folder_of(self.path).absolute()
        found = {name: self._partners(*folders) for name, folders in self._folders(root).items()}
        pictures = Pictures(self.channels, self.value_range)
        splits = {name: self._read(pairs, pictures) for name, pairs in found.items()}
        pictures.say(root, annotated=True)
        if "test" not in splits:
            splits["train"], splits["test"] = hold_out(splits["train"], self.test, "test")
        shapes = {name: split.columns["image"].shape[1:] for name, split in splits.items()}
        if len(set(shapes.values())) > 1:
            raise DataError(f"{root}: the splits differ in image size ({shapes}); give data.size")
        info = {} if self.value_range is None else {"value_range": list(self.value_range)}
        return assemble(self, splits, classes=self._names(splits, root), info=info)

    def _folders(self, root: Path) -> dict[str, tuple[Path, Path]]:
        """The folders of images and of masks of each split."""
        if SPLIT not in self.images:
            return {"train": (folder_of(root / self.images), folder_of(root / self.masks))}
        found = {}
        for split, names in NAMES.items():
            for name in names:
                images, masks = (root / each.replace(SPLIT, name) for each in (self.images, self.masks))
                if images.is_dir() and split not in found:
                    found[split] = images, folder_of(masks)
        if "train" not in found:
            raise DataError(f"{root / self.images.replace(SPLIT, 'train')}: nothing is there; see data.images")
        return found

    def _partners(self, images: Path, masks: Path) -> list[tuple[Path, Path]]:
        """Each image file with its mask, in the order of their names."""
        files, beside = _by_name(images), _by_name(masks)
        for name in sorted({*files, *beside}):
            if name not in files or name not in beside:
                there, folder = (files[name], masks) if name in files else (beside[name], images)
                raise DataError(f"{there} has no partner in {folder}; image and mask have one name")
        if not files:
            raise DataError(f"{images}: no image files ({', '.join(sorted(SUFFIXES))})")
        return [(files[name], beside[name]) for name in sorted(files)]

    def _read(self, files: list[tuple[Path, Path]], pictures: Pictures) -> Split:
        masks: dict[str, np.ndarray] = {}
        beside = {str(image): mask for image, mask in files}

        def both(path: str, noted: Pictures) -> np.ndarray:
            image, masks[path] = self._pair(Path(path), beside[path], noted)
            return image

        pixels = examined(list(beside), both, pictures, "give data.size, to which all are brought")
        column = pixels.read_by(self._image)
        return Split({"image": column, "mask": np.stack([masks[path] for path in beside])}, column.files.keys)

    def _image(self, path: str, pictures: Pictures) -> np.ndarray:
        image = pictures.decoded(Path(path), path)
        return image if self.size is None else resized(image, self.size)

    def _pair(self, image_file: Path, mask_file: Path, pictures: Pictures) -> tuple[np.ndarray, np.ndarray]:
        """uint8 `[H, W, C]` and `[H, W]`; DataError where they differ in size or the mask holds what is no class."""
        image, mask = pictures.decoded(image_file, str(image_file)), self._ids(mask_file, pictures)
        if mask.shape != image.shape[:2]:
            sizes = (f"{each.shape[1]}x{each.shape[0]}" for each in (mask, image))
            raise DataError("{}: {} pixels, its image has {}; they must be equal".format(mask_file, *sizes))
        if self.size is None:
            return image, mask
        return resized(image, self.size), resized(mask, self.size, nearest=True)

    def _ids(self, file: Path, pictures: Pictures) -> np.ndarray:
        """uint8 `[H, W]`: the class of each pixel, 255 for none."""
        if self.colours:
            return _ids_of_colours(pictures.colours(file, str(file)), self.colours)
        values = pictures.ids(file, str(file))
        if values.ndim != 2:
            raise DataError(f"{file}: the mask holds colours, not class ids; give data.colours, one for each class")
        if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.rint(values)).all()):
            raise DataError(f"{file}: the mask holds fractions, not class ids; save whole numbers from 0 to {NO_CLASS}")
        found = np.where(values == (NO_CLASS if self.ignored is None else self.ignored), NO_CLASS, values)
        wrong = found[(found < 0) | (found > NO_CLASS)]
        if self.classes and not wrong.size:
            wrong = found[(found >= len(self.classes)) & (found != NO_CLASS)]
        if wrong.size:
            allowed = f"0 to {(len(self.classes) or NO_CLASS) - 1}, and {NO_CLASS} for no class"
            raise DataError(
                f"{file}: the mask holds {int(wrong[0])}; allowed: {allowed}. Give data.ignored where it is no class"
            )
        return found.astype(np.uint8)

    def _names(self, splits: dict[str, Split], root: Path) -> tuple[str, ...]:
        if self.classes or self.colours:
            return self.classes or tuple(map(str, range(len(self.colours))))
        masks = [split.columns["mask"] for split in splits.values()]
        ids = [each[each != NO_CLASS] for each in masks]
        highest = max((int(each.max()) for each in ids if each.size), default=0)
        if highest < 1:
            raise DataError(f"{root}: the masks hold fewer than two classes; see data.masks and data.ignored")
        return tuple(map(str, range(highest + 1)))


def _by_name(folder: Path) -> dict[str, Path]:
    """The image files of a folder by their name without its ending."""
    found: dict[str, Path] = {}
    for path in pictures_in(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise DataError(f"{path} and {found[name]} have one name; leave one of them out")
        found[name] = path
    return found


def _ids_of_colours(pixels: np.ndarray, colours: tuple[Colour, ...]) -> np.ndarray:
    """uint8 `[H, W]` of uint8 `[H, W, 3]`: the place of each pixel's colour, 255 where it is none of them.

    >>> _ids_of_colours(np.array([[[9, 0, 0], [1, 2, 3]]], np.uint8), ((0, 0, 0), (9, 0, 0))).tolist()
    [[1, 255]]
    """
    found = np.full(pixels.shape[:2], NO_CLASS, np.uint8)
    for number, colour in enumerate(colours):
        found[(pixels == np.array(colour)).all(axis=-1)] = number
    return found
