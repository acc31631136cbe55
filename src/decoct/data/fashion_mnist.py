"""Fashion-MNIST: 28x28 grey images of clothing."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from decoct.data.base import Data, Dataset
from decoct.data.idx import read_images
from decoct.data.splits import assemble

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


class FashionMNIST(Data):
    """Fashion-MNIST: 60,000 and 10,000 grey images of 28x28 pixels in 10 classes of clothing, from IDX files.

    `path`: the folder that holds `FashionMNIST/raw`, or the four IDX files themselves, gzip or not; without it
    torchvision downloads them. Xiao, Rasul, Vollgraf 2017.
    """

    use: ClassVar[str] = "fashion_mnist"

    def open(self, *, offline: bool = False) -> Dataset:
        splits = read_images(self.use, "FashionMNIST", self.path, CLASSES, _download, offline=offline)
        return assemble(self, splits, classes=CLASSES)


def _download(cache: Path) -> None:
    from torchvision.datasets import FashionMNIST as Canonical

    Canonical(str(cache), download=True)
