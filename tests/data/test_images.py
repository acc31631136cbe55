"""Pictures: 16 bits, floats, EXIF, transparency, frames, foreign formats, bombs, pipes; what is no class folder."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from decoct.data.files import walked
from decoct.data.image_folder import ImageFolder
from decoct.data.image_masks import ImageMasks
from decoct.data.images import MOST_PIXELS, Pictures
from decoct.data.voc import VOC
from decoct.errors import DataError, RecipeError

RNG = np.random.default_rng(0)
COLOURED = RNG.integers(0, 256, (6, 9, 3), np.uint8)
DEEP = RNG.integers(0, 65536, (6, 9)).astype(np.uint16)


def encoded(pixels: np.ndarray, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def tiff(numbers: np.ndarray, *, order: str = "<", white_is_zero: bool = False, bits: int | None = None) -> bytes:
    """A TIFF of one strip, written by hand: its numbers as they are, 12 bits packed."""
    kind = {"u": 1, "i": 2, "f": 3}[numbers.dtype.kind]
    bits = bits or 8 * numbers.itemsize
    strip = numbers.astype(numbers.dtype.newbyteorder(order)).tobytes()
    if bits == 12:
        strip = b"".join(
            int("".join(f"{int(n):012b}" for n in row).ljust(-(-len(row) * 12 // 8) * 8, "0"), 2).to_bytes(
                -(-len(row) * 12 // 8), "big"
            )
            for row in numbers
        )
    height, width = numbers.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 0 if white_is_zero else 1), (273, 8)]
    tags += [(277, 1), (278, height), (279, len(strip)), (339, kind)]
    start = 8 + len(strip) + len(strip) % 2
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, start)
    return head + strip + b"\0" * (len(strip) % 2) + struct.pack(f"{order}H", len(tags)) + entries + b"\0" * 4


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What is to be seen, by the definition of the tag (EXIF 2.32, 4.6.4): where row 0 and column 0 are."""
    rows, columns = (pixels[::-1], pixels[:, ::-1])
    both, across = pixels[::-1, ::-1], (1, 0, *range(2, pixels.ndim))
    return {
        1: pixels,
        2: columns,
        3: both,
        4: rows,
        5: pixels.transpose(across),
        6: rows.transpose(across),
        7: both.transpose(across),
        8: columns.transpose(across),
    }[orientation]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "content",
    [encoded(DEEP, "PNG"), encoded(DEEP, "PPM"), tiff(DEEP), tiff(DEEP, order=">")],
    ids=["png", "pgm", "tiff", "tiff-big-endian"],
)
def test_sixteen_bits_are_scaled(content: bytes, channels: Any) -> None:
    expected = np.rint(DEEP.astype(np.float64) * 255 / 65535)
    found = Pictures(channels).read(content, "x")
    assert found.shape == (6, 9, channels)
    assert (found == expected[..., None]).all()


def test_twelve_bits_and_white_as_zero() -> None:
    twelve = DEEP >> 4
    found = Pictures(1).read(tiff(twelve, bits=12), "x")[..., 0]
    assert (found == np.rint(twelve.astype(np.float64) * 255 / 4095)).all()
    found = Pictures(1).read(tiff(DEEP, white_is_zero=True), "x")[..., 0]
    assert np.abs(found - (255 - DEEP.astype(np.float64) * 255 / 65535)).max() <= 0.5


NUMBERS = {
    "float32": RNG.normal(0, 2, (6, 9)).astype(np.float32),
    "int16": RNG.integers(-1024, 3072, (6, 9)).astype(np.int16),
    "int32": RNG.integers(-9, 9, (6, 9)).astype(np.int32),
    "uint32": RNG.integers(0, 2**32, (6, 9), np.uint32),
}


@pytest.mark.parametrize("kind", list(NUMBERS))
def test_numbers_without_a_range_are_refused_by_file_and_taken_with_one(kind: str, tmp_path: Path) -> None:
    numbers, file = NUMBERS[kind], tmp_path / "scan.tif"
    file.write_bytes(tiff(numbers))
    with pytest.raises(DataError, match=r"scan\.tif: .*data\.value_range: \[BLACK, WHITE\]"):
        Pictures().read(file, str(file))
    black, white = float(np.quantile(numbers, 0.2)), float(np.quantile(numbers, 0.9))
    found = Pictures(1, (black, white)).read(file, str(file))[..., 0]
    share = (numbers.astype(np.float64) - black) / (white - black)
    assert np.abs(found - np.clip(share, 0, 1) * 255).max() <= 0.5 + 1e-9


def test_pixels_that_are_no_numbers_are_refused() -> None:
    numbers = NUMBERS["float32"].copy()
    numbers[2, 3] = np.nan
    with pytest.raises(DataError, match=r"slide: .*no finite numbers"):
        Pictures(1, (0, 1)).read(tiff(numbers), "slide")


@pytest.mark.parametrize("value", [(1.0, 1.0), (2.0, 0.0), (0.0, float("inf"))])
def test_a_range_must_be_one(value: tuple[float, float]) -> None:
    for data in (ImageFolder, ImageMasks, VOC):
        with pytest.raises(RecipeError, match=r"value_range.*: .*(first below the second|finite number)"):
            data(path="x", value_range=value)
    assert "value_range" not in ImageFolder(path="x").plain()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_orientation_is_honoured(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(form, {})
    content = encoded(COLOURED, form, exif=exif, **options)
    pictures = Pictures()
    found, expected = pictures.read(content, "x"), turned(COLOURED, orientation)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= (4 if form == "JPEG" else 0)
    assert pictures.turned.count == (orientation > 1)
    assert (pictures.ids(content, "x") == found).all()


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_transparency_is_put_on_white_and_said(form: str, tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (6, 9, 4), np.uint8)
    pictures = Pictures()
    found = pictures.read(encoded(pixels, form, **({"lossless": True, "exact": True} if form == "WEBP" else {})), "x")
    share = pixels[..., 3:] / 255.0
    assert np.abs(found - (pixels[..., :3] * share + 255 * (1 - share))).max() <= 1
    with pytest.warns(UserWarning, match=r"1 pictures with transparency are put on white \(such as x\)"):
        pictures.say(tmp_path)


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "I;16"])
def test_a_colour_that_stands_for_transparency_becomes_white(mode: str) -> None:
    grey = np.array([[0, 1], [2, 3]], np.uint8)
    picture = Image.fromarray(grey.astype(np.uint16) * 10000 if mode == "I;16" else grey)
    if mode == "P":
        picture = Image.fromarray(grey, "P")
        picture.putpalette([each for level in (0, 1, 2, 3) for each in (level, level, level)])
    elif mode == "RGB":
        picture = picture.convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", transparency={"P": 1, "L": 1, "RGB": (1, 1, 1), "I;16": 10000}[mode])
    found = Pictures(1).read(buffer.getvalue(), "x")[..., 0]
    assert found.tolist() == ([[0, 255], [78, 117]] if mode == "I;16" else [[0, 255], [2, 3]])


def test_opaque_pictures_are_read_as_ever_and_nothing_is_said(tmp_path: Path) -> None:
    opaque = np.dstack([COLOURED, np.full(COLOURED.shape[:2], 255, np.uint8)])
    pictures = Pictures()
    assert (pictures.read(encoded(opaque, "PNG"), "x") == COLOURED).all()
    assert (pictures.read(encoded(COLOURED, "PNG"), "x") == COLOURED).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures.say(tmp_path, annotated=True)


def test_further_frames_are_said(tmp_path: Path) -> None:
    pictures = Pictures(1)
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (10, 200)]
    for form in ("GIF", "TIFF"):
        buffer = io.BytesIO()
        frames[0].save(buffer, form, save_all=True, append_images=frames[1:])
        assert (pictures.read(buffer.getvalue(), "x") == 10).all()
    with pytest.warns(UserWarning, match="2 pictures hold several frames, of which the first is taken"):
        pictures.say(tmp_path)


def test_dark_pictures_of_sixteen_bits_are_said(tmp_path: Path) -> None:
    pictures = Pictures(1)
    pictures.read(encoded(DEEP >> 5, "PNG"), "scan.png")  # 11 bits in 16
    with pytest.warns(UserWarning, match=r"nearly black; give data\.value_range, such as \[0, 20\d\d\]"):
        pictures.say(tmp_path)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


def test_no_program_is_started_for_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    program, started = tmp_path / "gs", tmp_path / "started"
    program.write_text(f"#!/bin/sh\necho started >> {started}\necho 10.0\n", encoding="ascii")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # what Pillow remembers of an earlier search
    for label in ("cat", "dog"):
        (tmp_path / "data" / label).mkdir(parents=True)
        (tmp_path / "data" / label / "1.png").write_bytes(EPS)
    with pytest.raises(DataError, match=r"1\.png: no readable image"):
        ImageFolder(path=tmp_path / "data").open()
    assert not started.exists()


def bomb(side: int) -> bytes:
    """A PNG whose header promises side x side pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [int(MOST_PIXELS**0.5) + 1, 12_000, 30_000, 2_000_000_000])
def test_a_decompression_bomb_is_refused(side: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=r"big\.png: (too many pixels|no readable image)"):
            Pictures().read(bomb(side), "big.png")


def test_a_pipe_is_no_picture(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1.png")
    with pytest.raises(DataError, match=r"1\.png: a pipe and no regular file"):
        Pictures().read(tmp_path / "1.png", "1.png")


def test_damaged_pictures_of_every_form_are_refused_or_read() -> None:
    whole = [encoded(COLOURED, form) for form in ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")]
    whole += [encoded(DEEP, "PNG"), tiff(NUMBERS["float32"])]
    exif = Image.Exif()
    exif[0x0112] = 6
    whole.append(encoded(COLOURED, "JPEG", exif=exif))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for content in whole:
            for _ in range(60):
                damaged = bytearray(content[: int(RNG.integers(1, len(content) + 1))])
                for at in RNG.integers(0, len(damaged), 4):
                    damaged[at] = int(RNG.integers(256))
                try:
                    found = Pictures(3, (0, 1)).read(bytes(damaged), "x")
                except DataError:  # anything else fails the test
                    continue
                assert found.dtype == np.uint8


def class_tree(root: Path, names: tuple[str, ...] = ("cat", "dog")) -> None:
    for value, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for index in range(6):
            pixels = np.full((8, 8, 3), 40 * value + index, np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")


@pytest.mark.parametrize("below", ["", "train"])
def test_hidden_and_empty_folders_are_no_classes_and_are_said(tmp_path: Path, below: str) -> None:
    plain, other = tmp_path / "plain", tmp_path / "other"
    class_tree(plain / below)
    class_tree(other / below, ("cat", "dog", ".ipynb_checkpoints", "__MACOSX"))
    (other / below / "empty").mkdir()
    class_tree(other / below / "dog", (".ipynb_checkpoints",))
    (other / below / "cat" / "._0.png").write_bytes(b"a resource fork")
    (other / below / "cat" / "labels.heic").write_bytes(b"?")
    expected = ImageFolder(path=plain).open()
    with pytest.warns(UserWarning, match="are left out") as told:
        found = ImageFolder(path=other).open()
    assert found.classes == ("cat", "dog")
    assert found.fingerprint == expected.fingerprint
    said = "\n".join(str(each.message) for each in told)
    for name in (".ipynb_checkpoints", "__MACOSX", "empty", "dog/.ipynb_checkpoints"):
        assert str(Path(below) / name) in said
    assert "1 files in class folders are left out" in said
    assert "labels.heic" in said


def test_folders_without_classes_are_refused(tmp_path: Path) -> None:
    class_tree(tmp_path, ("cat", ".git"))
    with pytest.raises(DataError, match="1 class folders with images"):
        ImageFolder(path=tmp_path).open()
    with pytest.raises(DataError, match="no folder but a device; give the folder of the data"):
        ImageFolder(path="/dev/zero").open()


def test_the_walk_leaves_what_is_hidden(tmp_path: Path) -> None:
    class_tree(tmp_path, ("cat", ".cache"))
    assert {path.parent.name for path in walked(tmp_path)} == {"cat"}


def test_masks_read_their_pictures_alike(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for index in range(6):
        pixels = np.roll(COLOURED, index, 0)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png", exif=exif)
        ids = np.arange(54, dtype=np.uint8).reshape(9, 6) % 3
        Image.fromarray(ids).save(tmp_path / "masks" / f"{index}.png")
    with pytest.warns(UserWarning, match="6 pictures are turned as their EXIF says; what was drawn must fit"):
        data = ImageMasks(path=tmp_path, classes=("a", "b", "c")).open()
    images = np.concatenate([split.columns["image"] for split in data.splits.values()])
    every = {turned(np.roll(COLOURED, index, 0), 6).tobytes() for index in range(6)}
    assert {each.tobytes() for each in images} == every
    (tmp_path / "masks" / "0.png").unlink()
    (tmp_path / "masks" / "0.tif").write_bytes(tiff(np.full((9, 6), 1.5, np.float32)))
    with pytest.raises(DataError, match=r"0\.tif: the mask holds fractions"):
        ImageMasks(path=tmp_path, classes=("a", "b", "c")).open()


def test_boxes_must_be_about_the_picture_as_turned(tmp_path: Path) -> None:
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / name).mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    box = "<xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>5</ymax>"
    for width, height in ((9, 6), (6, 9)):
        names = [str(index) for index in range(6)]
        for index in names:
            Image.fromarray(np.roll(COLOURED, int(index), 0)).save(tmp_path / "JPEGImages" / f"{index}.png", exif=exif)
            (tmp_path / "Annotations" / f"{index}.xml").write_text(
                f"<annotation><size><width>{width}</width><height>{height}</height></size><object><name>cell</name>"
                f"<bndbox>{box}</bndbox></object></annotation>"
            )
        (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("\n".join(names))
        if (width, height) == (9, 6):
            with pytest.raises(DataError, match=r"0\.xml: .*9x6 pixels, and the image .* has 6x9"):
                VOC(path=tmp_path).open()
        else:
            with pytest.warns(UserWarning, match="6 pictures are turned"):
                assert VOC(path=tmp_path).open().splits["train"].columns["image"].shape[1:] == (9, 6, 3)
