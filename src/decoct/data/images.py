"""Pictures: image files to pixels, decoded with Pillow in one way for every data set."""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field

from decoct.data.files import regular, walked
from decoct.errors import DataError
from decoct.memory import require_memory

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""What Pillow may take a file for, whatever its ending says; others start programs (EPS starts Ghostscript)."""
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
MOST_PIXELS = 100_000_000
"""Of one picture; with more it is taken for a decompression bomb."""
LARGEST_SIDE = 16384
"""To which pictures are brought."""
ORIENTATION, PHOTOMETRIC, BITS, SAMPLE_FORMAT = 0x0112, 262, 258, 339
"""Tags of EXIF and TIFF."""
DIM = 1 / 16
"""Pictures of 16 bits that use a smaller part of their range than this keep 16 grey levels or fewer."""
UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, ArithmeticError, TypeError, AttributeError, struct.error,
    zlib.error,
)  # fmt: skip
"""What Pillow raises on damaged files."""


def _ordered(value: tuple[float, float] | None) -> tuple[float, float] | None:
    if value is not None and not (all(map(math.isfinite, value)) and value[0] < value[1]):
        raise ValueError(f"it is {list(value)}; give the numbers of black and of white, the first below the second")
    return value


ValueRange = Annotated[tuple[float, float] | None, AfterValidator(_ordered), Field(exclude_if=lambda v: v is None)]
"""Black and white of pictures whose numbers do not say it; left out of keys where it is not given."""


@dataclass
class Noted:
    """What was done to pictures of a data set that their owner should know: how many, and the first."""

    count: int = 0
    first: str = ""

    def add(self, where: str) -> None:
        self.count += 1
        self.first = self.first or where

    def join(self, other: Noted) -> None:
        """Adds what was noted of later pictures."""
        self.count += other.count
        self.first = self.first or other.first


@dataclass
class Pictures:
    """Reads the pictures of one data set as uint8 `[H, W, channels]`, and says at the end what was done to some.

    A picture is turned as its EXIF says; transparency is put on white; of several frames the first is taken. Numbers of
    16 bits are scaled by 65535 (12 bits by 4095); where floats, signed numbers and those of 32 bits mean black and
    white nobody knows, so that they need `value_range` (black, white), which counts for those of 16 bits too: numbers
    outside of it become black and white. `count`: how many pictures are expected, so that memory is asked for in time.
    DataError names the picture that cannot be read, ResourceError one that would not fit into memory with the others.
    """

    channels: Literal[1, 3] = 3
    value_range: tuple[float, float] | None = None
    count: int = 0
    turned: Noted = field(default_factory=Noted)
    transparent: Noted = field(default_factory=Noted)
    framed: Noted = field(default_factory=Noted)
    deep: Noted = field(default_factory=Noted)
    brightest: float = 0.0
    taken: int = 0

    def like(self) -> Pictures:
        """The same settings, nothing noted yet: for pictures read elsewhere, whose notes `add` takes."""
        return Pictures(self.channels, self.value_range)

    def add(self, later: Pictures) -> None:
        """Takes over what was noted of pictures that come after those read so far."""
        for name in ("turned", "transparent", "framed", "deep"):
            getattr(self, name).join(getattr(later, name))
        self.brightest = max(self.brightest, later.brightest)

    def read(self, content: bytes | Path, where: str, size: int | None = None) -> np.ndarray:
        """As `decoded`, of a picture that is kept with all others."""
        pixels = self.decoded(content, where, size)
        self._keep(pixels, where)
        return pixels

    def decoded(self, content: bytes | Path, where: str, size: int | None = None) -> np.ndarray:
        """One picture; with `size`, its shorter side is scaled to it and the middle square cut out."""
        try:
            with _opened(content, where) as opened:
                picture = self._upright(opened, where)
                picture = self._in_bytes(picture, opened, where)
        except UNREADABLE as error:
            raise _unreadable(where, error) from None
        pixels = np.asarray(_square(picture, size), np.uint8)
        return pixels[..., None] if self.channels == 1 else pixels

    def ids(self, content: bytes | Path, where: str) -> np.ndarray:
        """`[H, W]` (of several channels `[H, W, C]`): the numbers as they stand in the file, as masks need them."""
        try:
            with _opened(content, where) as opened:
                return np.asarray(self._upright(opened, where))
        except UNREADABLE as error:
            raise _unreadable(where, error) from None

    def colours(self, content: bytes | Path, where: str) -> np.ndarray:
        """uint8 `[H, W, 3]` of a mask of colours, read as a picture and counted as none."""
        return Pictures(3, transparent=self.transparent, framed=self.framed).decoded(content, where)

    def say(self, root: Path, *, annotated: bool = False) -> None:
        """Warns of what was done; `annotated`: masks or boxes were drawn on the pictures, and turning matters."""
        told = [
            (self.transparent, "with transparency are put on white"),
            (self.framed, "hold several frames, of which the first is taken"),
        ]
        if annotated:
            told.append((self.turned, "are turned as their EXIF says; what was drawn must fit them as turned"))
        if self.deep.count and self.value_range is None and self.brightest < DIM:
            told.append(
                (self.deep, f"of 16 bits use {self.brightest:.2%} of their range at most and become nearly black; give "
                 f"data.value_range, such as [0, {math.ceil(65535 * self.brightest)}]")
            )  # fmt: skip
        for noted, what in told:
            if noted.count:
                warnings.warn(f"{root}: {noted.count} pictures {what} (such as {noted.first})", stacklevel=3)

    def _upright(self, opened: Any, where: str) -> Image:
        """The first frame, decoded and turned as its EXIF says."""
        from PIL import ImageOps

        if opened.format != "MPO" and getattr(opened, "n_frames", 1) > 1:  # of a phone: a preview, a depth map
            self.framed.add(where)
            opened.seek(0)
        if opened.getexif().get(ORIENTATION, 1) in range(2, 9):
            self.turned.add(where)
        opened.load()  # which turns a TIFF
        return ImageOps.exif_transpose(opened) if opened.getexif().get(ORIENTATION, 1) in range(2, 9) else opened

    def _in_bytes(self, picture: Image, opened: Any, where: str) -> Image:
        """Grey or colour of 8 bits, without transparency."""
        if picture.mode == "F" or picture.mode.startswith("I"):
            picture = self._of_numbers(picture, opened, where)
        if picture.has_transparency_data:
            picture = self._on_white(picture, where)
        mode = "L" if self.channels == 1 else "RGB"
        return picture if picture.mode == mode else picture.convert(mode)

    def _of_numbers(self, picture: Image, opened: Any, where: str) -> Image:
        """A picture of more than 8 bits a number in grey (and alpha, where one number stands for transparency)."""
        from PIL import Image

        numbers, most = _numbers(picture, opened)
        if self.value_range is None and most is None:
            kind = "floats" if picture.mode == "F" else "signed or 32-bit numbers"
            raise DataError(
                f"{where}: its pixels are {kind} from {numbers.min():g} to {numbers.max():g}, and nothing says which "
                "are black and white; give data.value_range: [BLACK, WHITE]"
            )
        if not np.isfinite(numbers).all():
            raise DataError(f"{where}: some of its pixels are no finite numbers; give them values and save it again")
        black, white = self.value_range or (0.0, float(most or 1))
        share = np.clip((numbers.astype(np.float64) - black) / (white - black), 0, 1)
        self.deep.add(where)
        self.brightest = max(self.brightest, float(share.max(initial=0)))
        if _white_is_zero(opened):
            share = 1 - share
        grey = Image.fromarray(np.rint(255 * share).astype(np.uint8))
        clear = opened.info.get("transparency")
        if isinstance(clear, int):
            grey = Image.merge("LA", [grey, Image.fromarray(np.where(numbers == clear, 0, 255).astype(np.uint8))])
        return grey

    def _on_white(self, picture: Image, where: str) -> Image:
        from PIL import Image

        coloured = picture.convert("RGBA")
        if coloured.getchannel("A").getextrema()[0] == 255:
            return coloured
        self.transparent.add(where)
        return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)

    def _keep(self, pixels: np.ndarray, where: str) -> None:
        """Asks for the memory of all expected pictures at the first, and of those read so far at each power of two."""
        self.taken += 1
        if self.taken == 1 or (self.taken >= self.count and self.taken & (self.taken - 1) == 0):
            expected = max(self.count, self.taken)
            shape = "x".join(map(str, pixels.shape))
            require_memory(
                2 * expected * pixels.nbytes,
                f"{where}: {expected:,} pictures of {shape}",
                "give a smaller data.size, or fewer pictures",
            )


def pictures_in(folder: Path) -> list[Path]:
    """The picture files below a folder by their endings, sorted; none that is hidden or in a hidden folder."""
    return sorted(path for path in walked(folder) if path.suffix.lower() in SUFFIXES)


def resized(pixels: np.ndarray, size: tuple[int, int], *, nearest: bool = False) -> np.ndarray:
    """uint8 `[H, W, C]` or `[H, W]` brought to `size` (height, width), by averaging or by the nearest pixel.

    >>> resized(np.array([[1, 2], [3, 4]], np.uint8), (1, 2), nearest=True).shape
    (1, 2)
    """
    from PIL import Image

    if pixels.shape[:2] == size:
        return pixels
    grey = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    found = np.asarray(Image.fromarray(grey).resize(size[::-1], how), np.uint8)
    return found.reshape(*size, *pixels.shape[2:])


def stack(images: list[np.ndarray], places: list[str], setting: str) -> np.ndarray:
    """uint8 `[N, H, W, C]`; DataError names the first image of another size, and `setting` which helps."""
    for image, place in zip(images, places):
        if image.shape != images[0].shape:
            raise other_size(place, image.shape, places[0], images[0].shape, setting)
    return np.stack(images)


def other_size(place: str, shape: tuple[int, ...], first: str, of_first: tuple[int, ...], setting: str) -> DataError:
    """The error for a picture of another size than the first one's."""
    own, other = (f"{each[1]}x{each[0]}" for each in (shape, of_first))
    return DataError(f"{place} has {own} pixels, {first} {other}; {setting}")


def _opened(content: bytes | Path, where: str) -> Any:
    """The picture's header; DataError where it promises more pixels than a picture has."""
    from PIL import Image

    source = io.BytesIO(content) if isinstance(content, bytes) else regular(content)
    try:  # no filter of warnings is set here: they are the process's, and several threads decode
        opened = Image.open(source, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many(where, str(error)) from None
    if math.prod(opened.size) > min(MOST_PIXELS, Image.MAX_IMAGE_PIXELS or MOST_PIXELS):
        width, height = opened.size
        opened.close()
        raise _too_many(where, f"{width}x{height}")
    return opened


def _too_many(where: str, found: str) -> DataError:
    return DataError(f"{where}: too many pixels for one picture ({found}); at most {MOST_PIXELS:,}, cut it into tiles")


def _unreadable(where: str, error: Exception) -> DataError:
    return error if isinstance(error, DataError) else DataError(f"{where}: no readable image ({error})")


def _square(picture: Image, size: int | None) -> Image:
    from PIL import Image

    if size is None or picture.size == (size, size):
        return picture
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return picture.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))


def _numbers(picture: Image, opened: Any) -> tuple[np.ndarray, int | None]:
    """The numbers of a picture of more than 8 bits, and the one that is white; None where nobody knows."""
    numbers = np.asarray(picture)
    tags = getattr(opened, "tag_v2", {})
    if picture.mode.startswith("I;16"):
        bits = tags.get(BITS, (16,))
        return numbers, (1 << int(bits[0] if isinstance(bits, tuple) else bits)) - 1
    if picture.mode == "I" and opened.format in ("PNG", "PPM"):  # 16 bits in both
        return numbers, 65535
    if picture.mode == "I" and tags.get(SAMPLE_FORMAT, (1,))[0] == 1:
        return numbers.view(np.uint32), None
    return numbers, None


def _white_is_zero(opened: Any) -> bool:
    """Whether a TIFF of numbers counts from white; of those of 8 bits Pillow turns it round."""
    return getattr(opened, "tag_v2", {}).get(PHOTOMETRIC) == 0
