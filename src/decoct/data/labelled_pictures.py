"""What every data set of labelled pictures does with its splits once they are read."""

from __future__ import annotations

from pathlib import Path

from decoct.data.base import Data, Dataset, Split
from decoct.data.images import Pictures
from decoct.data.splits import assemble, hold_out
from decoct.errors import DataError


def whole(
    data: Data, splits: dict[str, Split], classes: tuple[str, ...], pictures: Pictures, place: Path, test: float
) -> Dataset:
    """The data set: what was done to its pictures is said, `test` of them held out where there is no test split.

    DataError where the splits differ in image size.
    """
    pictures.say(place)
    if "test" not in splits:
        splits["train"], splits["test"] = hold_out(splits["train"], test, "test")
    shapes = {name: split.columns["image"].shape[1:] for name, split in splits.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(f"{place}: the splits differ in image size ({shapes}); give data.size")
    info = {} if pictures.value_range is None else {"value_range": list(pictures.value_range)}
    return assemble(data, splits, classes=classes, info=info)
