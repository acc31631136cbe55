"""MNIST: 28x28 grey images of handwritten digits."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from decoct.data.base import Data, Dataset
from decoct.data.idx import read_images
from decoct.data.splits import assemble

CLASSES = tuple("0123456789")


class MNIST(Data):
    """MNIST: 60,000 and 10,000 grey images of 28x28 pixels of handwritten digits, from IDX files.

    `path`: the folder that holds `MNIST/raw`, or the four IDX files themselves, gzip or not; without it torchvision
    downloads them. LeCun, Cortes, Burges 1998.
    """

    use: ClassVar[str] = "mnist"

    def open(self, *, offline: bool = False) -> Dataset:
        splits = read_images(self.use, "MNIST", self.path, CLASSES, _download, offline=offline)
        return assemble(self, splits, classes=CLASSES)


def _download(cache: Path) -> None:
    from torchvision import datasets

    datasets.MNIST(str(cache), download=True)
