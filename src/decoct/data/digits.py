"""The handwritten digits that scikit-learn brings along."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np

from decoct.data.base import Data, Dataset, Split
from decoct.data.hashing import image_keys
from decoct.data.splits import assemble, hold_out
from decoct.errors import DataError


class Digits(Data):
    """scikit-learn's 1,797 handwritten digits of 8x8 grey pixels, 0 to 16, in 10 classes; nothing is downloaded.

    About 20 % are the test split, chosen by key. Alpaydin, Kaynak 1998 (UCI, optical recognition of digits).

    >>> data = Digits().open(offline=True)
    >>> sorted(data.splits), data.splits["train"].columns["image"].shape[1:]
    (['test', 'train', 'validation'], (8, 8, 1))
    """

    use: ClassVar[str] = "digits"
    reads_files: ClassVar[bool] = False

    def open(self, *, offline: bool = False) -> Dataset:
        table = np.loadtxt(_file(), np.int64, delimiter=",")
        images = table[:, :64].astype(np.uint8).reshape(-1, 8, 8, 1)
        whole = Split({"image": images, "label": table[:, 64]}, image_keys(images))
        train, test = hold_out(whole, 0.2, "test")
        return assemble(self, {"train": train, "test": test}, classes=tuple("0123456789"))


def _file() -> Path:
    """The file in scikit-learn's package, whose import would take longer than all else here."""
    spec = find_spec("sklearn")
    found = None if spec is None or spec.origin is None else Path(spec.origin).parent / "datasets/data/digits.csv.gz"
    if found is None or not found.is_file():
        raise DataError("digits: scikit-learn's digits.csv.gz is missing; install scikit-learn again")
    return found
