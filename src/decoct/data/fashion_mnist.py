"""Fashion-MNIST: 28x28 grey images of clothing."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from decoct.data.base import Data, Dataset, Split
from decoct.data.files import absent, cache_folder, failed, present
from decoct.data.hashing import image_keys
from decoct.data.idx import read_idx
from decoct.data.splits import assemble
from decoct.errors import DataError

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
WANTED = "DIR, the folder that holds FashionMNIST/raw, or the four files train-images-idx3-ubyte(.gz) and so on"


class FashionMNIST(Data):
    """Fashion-MNIST: 60,000 and 10,000 grey images of 28x28 pixels in 10 classes of clothing, from IDX files.

    `path`: the folder that holds `FashionMNIST/raw`, or the four IDX files themselves, gzip or not; without it
    torchvision downloads them. Xiao, Rasul, Vollgraf 2017.
    """

    use: ClassVar[str] = "fashion_mnist"

    def open(self, *, offline: bool = False) -> Dataset:
        folder = self._folder(offline)
        splits = {name: _read(folder, *files) for name, files in FILES.items()}
        return assemble(self, splits, classes=CLASSES)

    def _folder(self, offline: bool) -> Path:
        if self.path is not None:
            return _find(present(self.path))
        cache = cache_folder(self.use)
        if not _holds(cache / "FashionMNIST" / "raw"):
            if offline:
                raise absent(self.use, WANTED)
            _download(cache)
        return _find(cache)


def _download(cache: Path) -> None:
    from torchvision.datasets import FashionMNIST as Canonical

    try:
        Canonical(str(cache), download=True)
    except (OSError, RuntimeError) as error:
        raise failed("fashion_mnist", error, WANTED) from None


def _find(path: Path) -> Path:
    candidates = [path, path / "raw", path / "FashionMNIST" / "raw"]
    for folder in candidates:
        if _holds(folder):
            return folder
    raise DataError(f"data.path={path}: no Fashion-MNIST files there; give data.path={WANTED}")


def _holds(folder: Path) -> bool:
    return all(
        (folder / name).is_file() or (folder / f"{name}.gz").is_file() for pair in FILES.values() for name in pair
    )


def _file(folder: Path, name: str) -> Path:
    plain = folder / name
    return plain if plain.is_file() else folder / f"{name}.gz"


def _read(folder: Path, image_name: str, label_name: str) -> Split:
    image_file, label_file = _file(folder, image_name), _file(folder, label_name)
    images, labels = read_idx(image_file, 3)[..., None], read_idx(label_file, 1).astype(np.int64)
    if len(images) != len(labels):
        raise DataError(f"{image_file} holds {len(images)} images, {label_file} {len(labels)} labels; they must agree")
    wrong = np.flatnonzero(labels >= len(CLASSES))
    if len(wrong):
        at = int(wrong[0])
        raise DataError(
            f"{label_file}: label {labels[at]} of item {at} (byte {8 + at}); expected 0 to {len(CLASSES) - 1}"
        )
    return Split({"image": images, "label": labels}, image_keys(images))
