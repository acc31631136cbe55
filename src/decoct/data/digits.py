"""The handwritten digits that scikit-learn brings along."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from decoct.data.base import Data, Dataset, Split
from decoct.data.hashing import image_keys
from decoct.data.splits import assemble, hold_out


class Digits(Data):
    """scikit-learn's 1,797 handwritten digits of 8x8 grey pixels, 0 to 16, in 10 classes; nothing is downloaded.

    About 20 % are the test split, chosen by key. Alpaydin, Kaynak 1998 (UCI, optical recognition of digits).

    >>> data = Digits().open(offline=True)
    >>> sorted(data.splits), data.splits["train"].columns["image"].shape[1:]
    (['test', 'train', 'validation'], (8, 8, 1))
    """

    use: ClassVar[str] = "digits"
    files: ClassVar[bool] = False

    def open(self, *, offline: bool = False) -> Dataset:
        from sklearn.datasets import load_digits

        bundle = load_digits()
        images = bundle.images.astype(np.uint8)[..., None]
        whole = Split({"image": images, "label": bundle.target.astype(np.int64)}, image_keys(images))
        train, test = hold_out(whole, 0.2, "test")
        return assemble(self, {"train": train, "test": test}, classes=tuple("0123456789"))
