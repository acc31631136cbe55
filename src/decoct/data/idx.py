"""The IDX format of MNIST and its kin, read with every bound checked (LeCun, Cortes, Burges 1998)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from decoct.data.base import Split
from decoct.data.files import absent, cache_folder, failed, present, read_bytes
from decoct.data.hashing import image_keys
from decoct.errors import DataError

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """uint8 array of an IDX file, gzip or not.

    Layout: two zero bytes, 0x08 (unsigned byte), number of dimensions, each size as a big-endian uint32, the data.
    DataError names the file and what differs.
    """
    content = read_bytes(path)
    start = 4 + 4 * dimensions
    expected = bytes([0, 0, 8, dimensions])
    if content[:4] != expected:
        raise DataError(
            f"{path}: starts with {content[:4].hex()}, an IDX file of {dimensions} dimensions with {expected.hex()}"
        )
    if len(content) < start:
        raise DataError(f"{path}: {len(content)} bytes end inside the header of {start} bytes")
    sizes = [int(size) for size in np.frombuffer(content[4:start], ">u4")]
    wanted = start
    count = 1
    for size in sizes:
        count *= size
    wanted += count
    if len(content) != wanted:
        raise DataError(
            f"{path}: {len(content)} bytes, its header promises {wanted} ({'x'.join(map(str, sizes))} values)"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)


def read_images(
    name: str,
    folder: str,
    path: Path | None,
    classes: Sequence[str],
    download: Callable[[Path], None],
    *,
    offline: bool,
) -> dict[str, Split]:
    """The training and test images of a set in MNIST's four files, gzip or not.

    `path` holds them, or `folder`/raw as torchvision lays them; without it `download` fetches them into the cache.
    DataError says what is absent, or which file and byte is wrong.
    """
    wanted = f"DIR, the folder that holds {folder}/raw, or the four files train-images-idx3-ubyte(.gz) and so on"
    if path is None:
        path = cache_folder(name)
        if not _holds(path / folder / "raw"):
            if offline:
                raise absent(name, wanted)
            try:
                download(path)
            except (OSError, RuntimeError) as error:
                raise failed(name, error, wanted) from None
    else:
        path = present(path)
    for each in (path, path / "raw", path / folder / "raw"):
        if _holds(each):
            return {split: _read(each, *files, len(classes)) for split, files in FILES.items()}
    raise DataError(f"data.path={path}: no {folder} files there; give data.path={wanted}")


def _holds(folder: Path) -> bool:
    return all(
        (folder / name).is_file() or (folder / f"{name}.gz").is_file() for pair in FILES.values() for name in pair
    )


def _file(folder: Path, name: str) -> Path:
    plain = folder / name
    return plain if plain.is_file() else folder / f"{name}.gz"


def _read(folder: Path, image_name: str, label_name: str, classes: int) -> Split:
    image_file, label_file = _file(folder, image_name), _file(folder, label_name)
    images, labels = read_idx(image_file, 3)[..., None], read_idx(label_file, 1).astype(np.int64)
    if len(images) != len(labels):
        raise DataError(f"{image_file} holds {len(images)} images, {label_file} {len(labels)} labels; they must agree")
    wrong = np.flatnonzero(labels >= classes)
    if len(wrong):
        at = int(wrong[0])
        raise DataError(f"{label_file}: label {labels[at]} of item {at} (byte {8 + at}); expected 0 to {classes - 1}")
    return Split({"image": images, "label": labels}, image_keys(images))
