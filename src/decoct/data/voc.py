"""Pascal VOC folders: images with boxes around what they show."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from decoct.data.base import Data, Dataset, Split
from decoct.data.files import folder_of, read_text
from decoct.data.hashing import image_keys
from decoct.data.images import LARGEST_SIDE, SUFFIXES, Pictures, ValueRange, resized, stack
from decoct.data.splits import NAMES, assemble, hold_out
from decoct.errors import DataError, RecipeError

CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass
class _Found:
    """One image: its name, its pixels, boxes `[n, 4]` in them and the names of what they hold; how many boxes were
    empty."""

    file: Path
    image: np.ndarray
    boxes: np.ndarray
    names: list[str]
    empty: list[str] = field(default_factory=list)


class VOC(Data):
    """A folder in the form of Pascal VOC: Annotations/NAME.xml, JPEGImages/NAME.jpg, ImageSets/Main/SPLIT.txt.

    The lists train, val and test say which names belong to a split; without test a fifth of train is held out by key.
    `classes`: names in the order of their ids, all names in the annotations, sorted, where left out. `size` (height,
    width): images and boxes are brought to it; needed where images differ in size. `channels` 1 (grey) or 3 (colour).
    Boxes are xyxy in pixels, edges of pixels counted: the pixel (1, 1) of VOC is the box 0, 0, 1, 1. They are cut at
    the border; those without an area are dropped, with a warning that counts them. Kept in memory as uint8: images of
    16 bits scaled by 65535, or from `value_range` (black, white), which images of floats need. Images are turned as
    their EXIF says, and the width and height in the annotation must be those of the turned image.
    """

    use: ClassVar[str] = "voc"
    classes: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    channels: Literal[1, 3] = 3
    value_range: ValueRange = None

    def open(self, *, offline: bool = False) -> Dataset:
        if self.path is None:
            raise RecipeError("data.path: missing; give the folder that holds Annotations, JPEGImages and ImageSets")
        if self.size is not None and not (min(self.size) >= 1 and max(self.size) <= LARGEST_SIDE):
            raise RecipeError(
                f"data.size: {self.size}; give (height, width), each at least 1 and at most {LARGEST_SIDE}"
            )
        root = folder_of(self.path)
        names = {split: _names(file) for split, file in _lists(root).items()}
        pictures = Pictures(self.channels, self.value_range, sum(map(len, names.values())))
        found = {split: [self._one(root, name, pictures) for name in each] for split, each in names.items()}
        pictures.say(root, annotated=True)
        dropped = [place for each in found.values() for one in each for place in one.empty]
        if dropped:
            warnings.warn(
                f"{root}: {len(dropped)} boxes without an area are dropped, such as {dropped[0]}", stacklevel=2
            )
        classes = self.classes or tuple(sorted({name for each in found.values() for one in each for name in one.names}))
        if not classes:
            raise DataError(f"{root}: the annotations hold no box at all")
        splits = {name: self._split(each, classes) for name, each in found.items()}
        if "test" not in splits:
            splits["train"], splits["test"] = hold_out(splits["train"], 0.2, "test")
        info = {} if self.value_range is None else {"value_range": list(self.value_range)}
        return assemble(self, splits, classes=classes, info=info)

    def _split(self, found: list[_Found], classes: tuple[str, ...]) -> Split:
        ids = {name: number for number, name in enumerate(classes)}
        for each in found:
            for number, name in enumerate(each.names, 1):
                if name not in ids:
                    raise DataError(
                        f"{each.file}: box {number} holds {name!r}, none of data.classes ({', '.join(classes)})"
                    )
        stacked = stack(
            [each.image for each in found], [str(each.file) for each in found], "give data.size, to which all come"
        )
        labels = [np.array([ids[name] for name in each.names], np.int64) for each in found]
        columns = {"image": stacked, "boxes": [each.boxes for each in found], "box_labels": labels}
        return Split(columns, image_keys(stacked))

    def _one(self, root: Path, name: str, pictures: Pictures) -> _Found:
        beside = root / "JPEGImages"
        path = next((beside / f"{name}{end}" for end in sorted(SUFFIXES) if (beside / f"{name}{end}").is_file()), None)
        if path is None:
            raise DataError(f"{beside}: no image {name!r}, which ImageSets names")
        image = pictures.read(path, str(path))
        file = root / "Annotations" / f"{name}.xml"
        annotation = _parsed(file)
        _refuse_other_size(file, annotation, image.shape[1], image.shape[0])
        found = _boxes(file, annotation, image.shape[1], image.shape[0])
        if self.size is None:
            return _Found(file, image, *found)
        scale = np.array([self.size[1] / image.shape[1], self.size[0] / image.shape[0]] * 2, np.float32)
        return _Found(file, resized(image, self.size), found[0] * scale, *found[1:])


def _lists(root: Path) -> dict[str, Path]:
    folder = folder_of(root / "ImageSets" / "Main")
    found = {}
    for split, names in NAMES.items():
        file = next((folder / f"{name}.txt" for name in names if (folder / f"{name}.txt").is_file()), None)
        if file is not None:
            found[split] = file
    if "train" not in found:
        raise DataError(f"{folder}: no train.txt, which says what belongs to the training split")
    return found


def _names(listed: Path) -> list[str]:
    names = [line.split()[0] for line in read_text(listed).splitlines() if line.strip()]
    if not names:
        raise DataError(f"{listed}: no names")
    return names


def _refuse_other_size(file: Path, root: Element, width: int, height: int) -> None:
    """DataError where the annotation says another size than the image has: its boxes would lie elsewhere."""
    told = [(root.findtext(f"size/{name}") or "").strip() for name in ("width", "height")]
    if all(each.isdecimal() and int(each) for each in told) and told != [str(width), str(height)]:
        raise DataError(
            f"{file}: it is about an image of {told[0]}x{told[1]} pixels, and the image (turned as its EXIF says) has "
            f"{width}x{height}; annotate the image as it is now, or correct the size where the boxes fit"
        )


def _parsed(file: Path) -> Element:
    """The root of an XML file; DataError where it is none, or declares a document type or entities."""
    content = read_text(file) if file.is_file() else None
    if content is None:
        raise DataError(f"{file}: nothing is there; each image has an annotation of its name")
    builder, parser = TreeBuilder(), expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise DataError(f"{file}: it declares a document type or entities; annotations need none, leave them out")

    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise DataError(f"{file}: no XML ({error})") from None
    return builder.close()


def _boxes(file: Path, root: Element, width: int, height: int) -> tuple[np.ndarray, list[str], list[str]]:
    """float32 `[n, 4]` xyxy cut at the border, the names of what they hold, and the places of those without an area."""
    boxes, names, empty = [], [], []
    for number, each in enumerate(root.findall("object"), 1):
        where = f"{file}: box {number}"
        name = (each.findtext("name") or "").strip()
        if not name:
            raise DataError(f"{where} has no name")
        corners = []
        for corner in CORNERS:
            text = each.findtext(f"bndbox/{corner}")
            try:
                corners.append(float(text or ""))
            except ValueError:
                raise DataError(f"{where} ({name}): {corner} is {text!r}; a number is needed") from None
        if not np.isfinite(corners).all():
            raise DataError(f"{where} ({name}): {corners}; finite numbers are needed")
        x0, y0, x1, y1 = corners
        cut = (max(x0 - 1, 0.0), max(y0 - 1, 0.0), min(x1, float(width)), min(y1, float(height)))
        if x1 <= x0 or y1 <= y0 or cut[2] <= cut[0] or cut[3] <= cut[1]:
            empty.append(f"{where} ({name}: {x0:g}, {y0:g}, {x1:g}, {y1:g})")
            continue
        boxes.append(cut)
        names.append(name)
    return np.array(boxes, np.float32).reshape(-1, 4), names, empty
